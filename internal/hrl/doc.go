// Package hrl is the change log: the writes to one disk that lead from one position to the next, in a file that is
// written beside the disk, sealed, shipped to the store and applied to the replica.
package hrl
