package track

import "sitrep/internal/disk"

// Of a disk that had at least massiveData bytes of data, nearly all is another when massiveShare percent are. No guest does
// that to a disk of some size in a day's work: the disk is another one, was encrypted, or was wiped. A smaller one may well be written anew,
// but hardly one of otherData when the file is another one too; else the recovery point before that is held.
const (
	massiveData  = 16 << 20
	massiveShare = 90
	// otherData is enough where the file is another one.
	otherData = 1 << 20
)

// Replaced says whether a disk is another one because lost of the had bytes of data that it held are not what they were. known and now are
// its identities then and now.
func Replaced(known, now disk.Identity, had, lost int64) bool {
	least := int64(massiveData)
	if known.File != 0 && now.File != 0 && known.File != now.File {
		least = otherData
	}
	return had >= least && lost*100 >= had*massiveShare
}
