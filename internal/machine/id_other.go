//go:build !linux && !windows

package machine

// systemID is not known of other systems.
func systemID() string { return "" }
