package fault

import (
	"context"
	"errors"
	"io/fs"
	"os"
)

// Code names a kind of error. Codes are part of the contract of --json: they are only added.
type Code string

// The codes. What each means to the operator stands in table.
const (
	IO               Code = "io"
	NoSpace          Code = "no-space"
	Permission       Code = "permission"
	NotFound         Code = "not-found"
	Interrupted      Code = "interrupted"
	Busy             Code = "busy"
	UsageError       Code = "usage"
	SiteInvalid      Code = "site-invalid"
	VMUnknown        Code = "vm-unknown"
	PrerequisiteFail Code = "prerequisite"
	RunLocked        Code = "locked"
	Exists           Code = "exists"

	DiskMissing      Code = "disk-missing"
	DiskFormat       Code = "disk-format"
	DiskCorrupt      Code = "disk-corrupt"
	DiskUnsupported  Code = "disk-unsupported"
	ChainBroken      Code = "chain-broken"
	DiskModified     Code = "disk-modified"
	DiskShrunk       Code = "disk-shrunk"
	LogCorrupt       Code = "log-corrupt"
	LogTorn          Code = "log-torn"
	LogForeign       Code = "log-foreign"
	LogGap           Code = "log-gap"
	LogVersion       Code = "log-version"
	LogLimit         Code = "log-limit"
	PositionLost     Code = "position-lost"
	StoreNotMounted  Code = "store-not-mounted"
	StoreForeign     Code = "store-foreign"
	ReplicaMissing   Code = "replica-missing"
	ReplicaForeign   Code = "replica-foreign"
	ReplicaChanged   Code = "replica-changed"
	ReplicaCorrupt   Code = "replica-corrupt"
	LedgerCorrupt    Code = "ledger-corrupt"
	LedgerVersion    Code = "ledger-version"
	LedgerConflict   Code = "ledger-conflict"
	Fenced           Code = "fenced"
	NotProtected     Code = "not-protected"
	AlreadyProtected Code = "already-protected"
	WrongState       Code = "wrong-state"
	ResyncRequired   Code = "resync-required"
	PointMissing     Code = "point-missing"
	Difference       Code = "difference"
)

// Entry is what the table says of one code.
type Entry struct {
	Class  Class
	Cause  string // possible cause
	Advice string // what to do, "{vm}" stands for the VM's name
}

// Lookup returns the table's entry for the code; an unknown code is recoverable and says so.
func (c Code) Lookup() Entry {
	if e, ok := table()[c]; ok {
		return e
	}
	return table()[IO]
}

// Class says what happens after an error of this code.
func (c Code) Class() Class { return c.Lookup().Class }

// table is every (fault, class, advice) triple of the product. It is a function so that nothing can change it.
func table() map[Code]Entry {
	return map[Code]Entry{
		IO:               {Recoverable, "A read or a write failed.", "Look at the disk or the network path named in the message; the next run tries again."},
		NoSpace:          {Recoverable, "The volume is full.", "Free space on the volume named in the message; the next run goes on where this one stopped."},
		Permission:       {Critical, "The account that runs sitrep may not read or write this file or folder.", "Correct the permissions, then run: sitrep resume {vm}"},
		NotFound:         {Critical, "A file or folder is not there.", "Correct the path in the site file or bring the file back, then run: sitrep check {vm}"},
		Interrupted:      {Recoverable, "The run was interrupted.", "Run the same command again; what was acknowledged is kept."},
		Busy:             {Recoverable, "Something else is using the file.", "Wait, or stop what is using it; the next run tries again."},
		UsageError:       {Usage, "The command line is wrong.", "Run: sitrep help"},
		SiteInvalid:      {Usage, "The site file is wrong.", "Correct the lines named above, then run: sitrep check"},
		VMUnknown:        {Usage, "The site file has no VM of this name.", "Run sitrep status --all to see the names."},
		PrerequisiteFail: {Prerequisite, "The VM does not meet a prerequisite of protection.", "Do what the finding says, then run: sitrep check {vm}"},
		Exists:           {Refused, "The file is there already.", "Give another name, or move the file away."},
		RunLocked:        {Locked, "Another run of sitrep works on this VM.", "Wait until it ends: sitrep jobs --vm {vm}"},

		DiskMissing:      {Critical, "The source disk is not where the site file says.", "Bring the disk back or correct its path, then run: sitrep resume {vm}"},
		DiskFormat:       {Critical, "The file is not a disk image of a known format.", "Check the path and the format in the site file, then run: sitrep check {vm}"},
		DiskCorrupt:      {Critical, "The disk image is damaged.", "Repair the image with the tools of its hypervisor, then run: sitrep resume {vm}"},
		DiskUnsupported:  {Critical, "The disk image uses a feature that is not supported.", "Convert the image, then run: sitrep check {vm}"},
		ChainBroken:      {Critical, "A parent of the differencing disk is missing or was modified.", "Repair the chain, then run: sitrep resume {vm}"},
		DiskModified:     {Recoverable, "The disk was written to while it was being read.", "Stop the VM or freeze its disks during the run, or put the disks on a filesystem with reflinks; the next run tries again."},
		DiskShrunk:       {Critical, "The source disk is smaller than its replica.", "Restore the disk's size, or run: sitrep unprotect {vm} and then: sitrep protect {vm}"},
		LogCorrupt:       {Resync, "A change log is damaged.", "Run: sitrep resync {vm}"},
		LogTorn:          {Resync, "A change log was not closed.", "Run: sitrep resync {vm}"},
		LogForeign:       {Resync, "A change log belongs to another disk or another history.", "Move the file away, then run: sitrep resync {vm}"},
		LogGap:           {Resync, "A change log is missing in the sequence.", "Bring the file back, or run: sitrep resync {vm}"},
		LogVersion:       {Critical, "The change log was written by a newer version.", "Update sitrep, then run: sitrep resume {vm}"},
		LogLimit:         {Resync, "Change logs have piled up because they could not be shipped, and take no more space.", "Mend what keeps the store out of reach, then run: sitrep resync {vm}"},
		PositionLost:     {Resync, "This site no longer knows which changes the replica has.", "Run: sitrep resync {vm}"},
		StoreNotMounted:  {Recoverable, "The store's folder is there but empty: the volume is probably not mounted.", "Mount the store, then run the same command again."},
		StoreForeign:     {Critical, "The folder holds another store than the one this site replicates to.", "Correct the store in the site file, or mount the right volume."},
		ReplicaMissing:   {Critical, "The replica of a protected VM is not in the store.", "Bring it back from where it was moved, or run: sitrep unprotect {vm} and then: sitrep protect {vm}"},
		ReplicaForeign:   {Critical, "The ledger in this folder is of another VM.", "Bring back the ledger of this VM, then run: sitrep verify {vm}"},
		ReplicaChanged:   {Resync, "Something other than sitrep wrote to the replica.", "Find out what it was; sitrep verify {vm} tells whether the content is still right, else run: sitrep resync {vm}"},
		ReplicaCorrupt:   {Resync, "The replica's content is not what its block sums say.", "Run: sitrep resync --deep {vm}"},
		LedgerCorrupt:    {Critical, "The ledger cannot be read.", "Restore ledger.json from a backup of the store, then run: sitrep verify {vm}"},
		LedgerVersion:    {Critical, "The store was written by a newer version.", "Update sitrep, then run: sitrep resume {vm}"},
		LedgerConflict:   {Recoverable, "Another run changed the ledger at the same time.", "Run the same command again."},
		Fenced:           {Refused, "Another site has taken over this VM.", "Run sitrep status {vm} to see who; nothing was written."},
		NotProtected:     {Refused, "The VM is not protected.", "Run: sitrep protect {vm}"},
		AlreadyProtected: {Refused, "The VM is protected already.", "Run: sitrep status {vm}"},
		WrongState:       {Refused, "The VM's state does not allow this.", "Run: sitrep status {vm}"},
		ResyncRequired:   {Resync, "The replica can no longer be brought up to date by change logs.", "Run: sitrep resync {vm}"},
		PointMissing:     {Critical, "There is no such recovery point.", "Run: sitrep points {vm}"},
		Difference:       {Differs, "The replica differs from what it should be.", "Run: sitrep resync --deep {vm}"},
	}
}

// FromOS classifies an error (not nil) that no layer has classified: by errno, never by text.
func FromOS(err error) *Error {
	if e := Find(err); e != nil {
		return e
	}
	code := IO
	switch {
	case errors.Is(err, context.Canceled):
		code = Interrupted
	case isNoSpace(err):
		code = NoSpace
	case errors.Is(err, fs.ErrPermission), isReadOnly(err):
		code = Permission
	case errors.Is(err, fs.ErrNotExist), isNotFolder(err):
		code = NotFound
	case isBusy(err):
		code = Busy
	}
	e := &Error{Code: code, Err: err}
	if pe, ok := err.(*os.PathError); ok { // bare: what is wrapped around one would be lost
		e.Path, e.Msg, e.Err = pe.Path, pe.Op, pe.Err
	}
	return e
}
