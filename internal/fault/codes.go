package fault

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
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
	GaveWay          Code = "gave-way"
	ReplicaHeld      Code = "replica-held"
	Exists           Code = "exists"
	// UnsafeFile is a link, a pipe, a device or a file of somebody else where a file of sitrep, or a disk, has to be.
	UnsafeFile Code = "unsafe-file"

	DiskMissing      Code = "disk-missing"
	DiskFormat       Code = "disk-format"
	DiskCorrupt      Code = "disk-corrupt"
	DiskUnsupported  Code = "disk-unsupported"
	ChainBroken      Code = "chain-broken"
	ParentElsewhere  Code = "parent-elsewhere"
	DiskReplaced     Code = "disk-replaced"
	DiskModified     Code = "disk-modified"
	DiskShrunk       Code = "disk-shrunk"
	DiskInUse        Code = "disk-in-use"
	DiskElsewhere    Code = "disk-elsewhere"
	LogCorrupt       Code = "log-corrupt"
	LogTorn          Code = "log-torn"
	LogForeign       Code = "log-foreign"
	LogGap           Code = "log-gap"
	LogVersion       Code = "log-version"
	LogLimit         Code = "log-limit"
	SourceReserve    Code = "source-reserve"
	PauseLimit       Code = "pause-limit"
	PositionLost     Code = "position-lost"
	StoreNotMounted  Code = "store-not-mounted"
	StoreUnnamed     Code = "store-identity-missing"
	StoreForeign     Code = "store-foreign"
	StoreElsewhere   Code = "store-elsewhere"
	ReplicaMissing   Code = "replica-missing"
	ReplicaForeign   Code = "replica-foreign"
	ReplicaChanged   Code = "replica-changed"
	ReplicaCorrupt   Code = "replica-corrupt"
	LedgerCorrupt    Code = "ledger-corrupt"
	LedgerVersion    Code = "ledger-version"
	LedgerConflict   Code = "ledger-conflict"
	Fenced           Code = "fenced"
	Declined         Code = "declined"
	NotOwner         Code = "not-owner"
	NotProtected     Code = "not-protected"
	AlreadyProtected Code = "already-protected"
	ReplicaKept      Code = "replica-kept"
	WrongState       Code = "wrong-state"
	ResyncRequired   Code = "resync-required"
	PointMissing     Code = "point-missing"
	PointDamaged     Code = "point-damaged"
	Difference       Code = "difference"

	HostUnreachable Code = "host-unreachable"
	HostRefused     Code = "host-refused"
	HostTimeout     Code = "host-timeout"
	VMAbsent        Code = "vm-absent"
	BootFailed      Code = "boot-failed"
	HookFailed      Code = "hook-failed"
	AddressTaken    Code = "address-taken"
	ManualAction    Code = "manual-action"
	TestRunning     Code = "test-failover-running"
	FailoverFailed  Code = "failover-failed"
	HostChanged     Code = "host-changed"

	StoreUnreachable Code = "store-unreachable"
	StoreThrottled   Code = "store-throttled"
	StoreDenied      Code = "store-denied"
	StoreClock       Code = "store-clock"
	StoreLimit       Code = "store-limit"
	StoreCorrupted   Code = "store-transit"
	StoreUnfit       Code = "store-unfit"
	StoreArchived    Code = "store-archived"
)

// Entry is what the table says of one code.
type Entry struct {
	Class Class
	Cause string // possible cause
	// Advice is what to do, Command included: "{vm}" stands for the VM's name, "{again}" for the command that failed, with
	// the VM's name (see Fill).
	Advice string
	// Command is the exact command that leads on when what Advice says was done, "" when there is none.
	Command string
	mend    string
}

// Leading is the entry with another command, for an error that knows better than the table which one leads on.
func (e Entry) Leading(command string) Entry {
	e.Command = command
	e.Advice = row{mend: e.mend, command: command}.advice()
	return e
}

// Of is the entry as the error e has it, which may know better than the table.
func (e Entry) Of(err *Error) Entry {
	if err.Cause != "" {
		e.Cause = err.Cause
	}
	if err.Mend != "" {
		e.mend = err.Mend
		e.Advice = row{mend: e.mend, command: e.Command}.advice()
	}
	return e
}

// Fill puts the VM's name and the command that failed (a subcommand of sitrep, "" when not known) into an advice or a
// command of the table.
func Fill(text, vm, verb string) string {
	if !suspends(verb) {
		text = strings.ReplaceAll(text, "sitrep resume {vm}", "{again}")
	}
	text = strings.ReplaceAll(text, "{again}", again(verb))
	return strings.ReplaceAll(text, "{vm}", vm)
}

// suspends says whether nothing is tried any more after a critical error of the command verb, until "sitrep resume" (Retry in package state):
// what is not on the schedule is run again as it stands. An unknown one may be on it.
func suspends(verb string) bool {
	switch verb {
	case "protect", "unprotect", "verify", "check", "failback":
		return false
	}
	return !strings.HasPrefix(verb, "failover ")
}

// again is the command line that does at once what verb did not get done. A capture without the store is part of a
// delta, and whatever only looks at a VM has nothing to repeat.
func again(verb string) string {
	switch verb {
	case "replicate", "apply", "resync":
		return "sitrep " + verb + " {vm} --now"
	case "protect", "unprotect", "pause", "resume", "verify", "check", "failback", "store unlock", "takeover":
		return "sitrep " + verb + " {vm}"
	}
	if strings.HasPrefix(verb, "failover ") && verb != "failover continue" {
		return "sitrep " + verb + " {vm}"
	}
	return "sitrep delta {vm} --now"
}

// Lookup returns the table's entry for the code; an unknown code is recoverable and says so.
func (c Code) Lookup() Entry {
	r, ok := table()[c]
	if !ok {
		r = table()[IO]
	}
	return Entry{Class: r.class, Cause: r.cause, Advice: r.advice(), Command: r.command, mend: r.mend}
}

// Class says what happens after an error of this code.
func (c Code) Class() Class { return c.Lookup().Class }

// Scheduled says whether an error of this code is tried again on the schedule of retries: a recoverable one, and a critical one of a cause
// that an administrator, or time, mends outside of sitrep. To look again harms nothing then, and nobody has to say that it was mended.
// What is left waits for a person, who has to decide about data.
func (c Code) Scheduled() bool {
	switch c {
	case Permission, NotFound, DiskMissing, ChainBroken, LogVersion, LedgerVersion, HostRefused, VMAbsent, HookFailed,
		StoreForeign, StoreDenied, StoreLimit, StoreArchived:
		return true
	}
	return c.Class() == Recoverable
}

// row is one line of the table: what has to be mended outside, in words, and the command that leads on afterwards.
type row struct {
	class   Class
	cause   string
	mend    string
	command string
}

func (r row) advice() string {
	switch {
	case r.command == "":
		return r.mend
	case r.mend == "":
		return "Run: " + r.command
	}
	return r.mend + " Then run: " + r.command
}

// table is every (fault, class, advice) triple of the product. It is a function so that nothing can change it.
func table() map[Code]row {
	return map[Code]row{
		IO:               {Recoverable, "A read or a write failed.", "Look at the disk or the network path named in the message.", "{again}"},
		NoSpace:          {Recoverable, "The volume is full.", "Free space on the volume named in the message.", "{again}"},
		Permission:       {Critical, "The account that runs sitrep may not read or write this file or folder, or its volume is mounted read-only.", "Correct the permissions, or mount the volume for writing.", "{again}"},
		NotFound:         {Critical, "A file or folder is not there.", "Correct the path in the site file or bring the file back.", "{again}"},
		Interrupted:      {Recoverable, "The run was interrupted.", "What was acknowledged is kept.", "{again}"},
		Busy:             {Recoverable, "Something else is using the file.", "Wait, or stop what is using it.", "{again}"},
		UsageError:       {Usage, "The command line is wrong.", "", "sitrep help"},
		SiteInvalid:      {Usage, "The site file is wrong.", "Correct what is named above.", "sitrep check"},
		VMUnknown:        {Usage, "The site file has no VM of this name.", "Look for its name in the list.", "sitrep status --all"},
		PrerequisiteFail: {Prerequisite, "The VM does not meet a prerequisite of protection.", "Do what the finding says; sitrep check {vm} lists all of them.", "{again}"},
		RunLocked:        {Locked, "Another run of sitrep works on this VM.", "Wait until it ends.", "sitrep jobs --vm {vm}"},
		GaveWay:          {Locked, "Another command that does not wait for this one took its turn.", "What was acknowledged is kept; the next run goes on where this one stopped.", "{again}"},
		ReplicaHeld:      {Locked, "Another run of sitrep, or one that is gone, holds the replica.", "Wait until it ends; only when that run, or its machine, is gone for good, take the replica over from it.", "sitrep store unlock {vm}"},
		UnsafeFile:       {Critical, "What lies there is not what sitrep puts there: a link, a pipe, a device, or a file of another account. Somebody who can write to the folder may have meant to have other files read, overwritten or removed.", "Find out who put it there; then bring back what belongs there, or remove it.", "sitrep resume {vm}"},
		Exists:           {Refused, "The file is there already.", "Give another name, or move the file away.", ""},

		DiskMissing:      {Critical, "The source disk is not where the site file says.", "Bring the disk back or correct its path.", "{again}"},
		DiskFormat:       {Critical, "The file is not a disk image of a known format.", "Correct the path and the format in the site file, or bring the image back.", "sitrep resume {vm}"},
		DiskCorrupt:      {Critical, "The disk image is damaged.", "Repair the image with the tools of its hypervisor.", "sitrep resume {vm}"},
		DiskUnsupported:  {Critical, "The disk image uses a feature that is not supported.", "Convert the image.", "sitrep resume {vm}"},
		ChainBroken:      {Critical, "A parent of the differencing disk is missing or was modified.", "Repair the chain.", "{again}"},
		ParentElsewhere:  {Critical, "The disk names a parent outside of its own folder, which is not read: whoever writes the disk could have any file of this machine replicated.", "If it is the disk's parent, name the file or its folder in the site file, at the disk: parents: [FOLDER].", "sitrep resume {vm}"},
		DiskReplaced:     {Prerequisite, "Another disk than the one that was replicated so far is at the configured path, or nearly all of its content was replaced. Nothing was sent: recovery points stay as they are.", "Look what is at the path, and bring the right disk back; or, if it is to be replicated from now on, say so with --accept-disk.", "{again}"},
		DiskModified:     {Recoverable, "The disk was written to while it was being read.", "Stop the VM or freeze its disks during the run, or put the disks on a filesystem with reflinks.", "{again}"},
		DiskShrunk:       {Critical, "The source disk is smaller than its replica.", "Restore the disk's size (or give the replica up: sitrep unprotect {vm}, and then sitrep protect {vm}).", "sitrep resume {vm}"},
		DiskInUse:        {Refused, "Something uses the disk, or may: nothing was written to it.", "End what the message names.", "{again}"},
		DiskElsewhere:    {Prerequisite, "The VM writes to another file than this disk: a checkpoint or a snapshot was made of it.", "Merge the checkpoint or the snapshot into the disk (Remove-VMSnapshot; virsh blockcommit --active --pivot), or name the file in the site file.", "{again}"},
		LogCorrupt:       {Resync, "A change log is damaged.", "", "sitrep resync {vm} --now"},
		LogTorn:          {Resync, "A change log was not closed.", "", "sitrep resync {vm} --now"},
		LogForeign:       {Resync, "A change log belongs to another disk or another history.", "Move the file away.", "sitrep resync {vm} --now"},
		LogGap:           {Resync, "A change log is missing in the sequence.", "", "sitrep resync {vm} --now"},
		LogVersion:       {Critical, "The change log was written by a newer version.", "Update sitrep.", "{again}"},
		LogLimit:         {Resync, "The change logs that wait beside the disk have reached the policy's share of its size, and take no more space.", "Mend what keeps them from being shipped.", "sitrep resync {vm} --now"},
		SourceReserve:    {Recoverable, "The volume of the source disk would have less free than the policy's reserve for the VM; nothing was captured, and no log was left.", "Free space on the volume named in the message, or see to it that the logs that wait are shipped.", "{again}"},
		PauseLimit:       {Recoverable, "Reading the disks takes longer than the policy lets the VM be held still (max_pause). It goes on; nothing was captured.", "Put the disks on a filesystem with reflinks (XFS, btrfs), where it is held for a moment only; or shut the VM down for a delta; or raise max_pause. With --now it is tried whatever the estimate says.", "{again}"},
		PositionLost:     {Resync, "This site no longer knows which changes the replica has.", "", "sitrep resync {vm} --now"},
		StoreNotMounted:  {Recoverable, "The store's folder is missing or empty: the volume is probably not mounted.", "Mount the store.", "{again}"},
		StoreUnnamed:     {Recoverable, "The store's own identity is gone, and its replicas are there.", "Make sure that this is the store, and no copy of a part of it; its identity is then written anew from what the replicas say.", "sitrep store repair"},
		StoreForeign:     {Critical, "The folder holds another store than the one this site replicates to.", "Correct the store in the site file, or mount the right volume.", "{again}"},
		StoreElsewhere:   {Critical, "The site file names another store than the one that holds the VM's replica.", "Correct the store in the site file (or, when the one that holds it is lost for good: sitrep unprotect {vm} --store-lost, and then sitrep protect {vm}).", "sitrep resume {vm}"},
		ReplicaMissing:   {Critical, "The replica of a protected VM is not in the store.", "Bring it back from where it was moved (or, when it is lost: sitrep unprotect {vm}, and then sitrep protect {vm}).", "sitrep resume {vm}"},
		ReplicaForeign:   {Critical, "The ledger in this folder is of another VM.", "Bring back the ledger of this VM.", "sitrep resume {vm}"},
		ReplicaChanged:   {Resync, "Something other than sitrep wrote to the replica.", "Find out what it was, so that it does not happen again.", "sitrep resync {vm} --now"},
		ReplicaCorrupt:   {Resync, "The replica's content is not what its block sums say.", "", "sitrep resync {vm} --deep --now"},
		LedgerCorrupt:    {Critical, "The ledger cannot be read.", "Restore ledger.json from a backup of the store (or, when there is none, move the VM's folder out of the store; then sitrep unprotect {vm}, and sitrep protect {vm}).", "sitrep resume {vm}"},
		LedgerVersion:    {Critical, "The store was written by a newer version.", "Update sitrep.", "{again}"},
		LedgerConflict:   {Recoverable, "Another run changed the ledger at the same time.", "", "{again}"},
		Fenced:           {Refused, "The VM was failed over, or another site owns its replica; nothing was written.", "See who does.", "sitrep status {vm}"},
		Declined:         {Refused, "The question was not answered with yes; nothing was changed.", "Look whether it is meant.", "sitrep status {vm}"},
		NotOwner:         {Refused, "Another machine, or another state folder, replicates this VM; nothing was written.", "Leave it to that one. Only when that one is gone for good, take the replica over from it: the command says first what is lost.", "sitrep takeover {vm}"},
		NotProtected:     {Refused, "The VM is not protected.", "", "sitrep protect {vm}"},
		AlreadyProtected: {Refused, "The VM is protected already.", "", "sitrep status {vm}"},
		ReplicaKept:      {Refused, "Protection was disabled and the replica kept, for reading only.", "To protect the VM again, give the kept replica up.", "sitrep unprotect {vm}"},
		WrongState:       {Refused, "The VM's state does not allow this.", "", "sitrep why {vm}"},
		ResyncRequired:   {Resync, "The replica can no longer be brought up to date by change logs.", "", "sitrep resync {vm} --now"},
		PointMissing:     {Critical, "There is no such recovery point.", "Choose one of the list.", "sitrep points {vm}"},
		PointDamaged:     {Critical, "What is kept of this recovery point is not what its block sums say.", "Choose another one of the list.", "sitrep points {vm}"},
		HostUnreachable:  {Recoverable, "The host did not answer.", "Look at the host and the way to it.", "{again}"},
		HostRefused:      {Critical, "The host refused the operation.", "Do what the host says in the message.", "{again}"},
		HostTimeout:      {Recoverable, "The host did not get done in time.", "Look at the host and the VM on it.", "{again}"},
		VMAbsent:         {Critical, "The host has no VM of this name.", "Correct the host or the name in the site file, or bring the VM back.", "{again}"},
		BootFailed:       {Critical, "The VM was started, but its boot check did not pass.", "Look at its console; another recovery point may boot.", "sitrep points {vm}"},
		HookFailed:       {Critical, "A script of the site file failed.", "Mend what the script complains about.", "{again}"},
		AddressTaken:     {Critical, "An address that the VM needs at the recovery site is taken; nothing was started.", "Free the address, or give the NIC another recovery_ip.", "{again}"},
		ManualAction:     {Waits, "The recovery plan waits for a person to do something.", "Do it, and say so.", "sitrep jobs"},
		TestRunning:      {Refused, "A test failover of this VM has not been cleaned up.", "", "sitrep failover cleanup {vm}"},
		HostChanged:      {Refused, "The recovered VM is at another host than the site file names.", "Name that host in the site file again, or work on the machine where it runs. When it is gone for good, --host-lost leaves what is there.", "{again}"},
		FailoverFailed:   {Critical, "A failover did not get done.", "Mend what the message names; the same command goes on where it stopped.", "{again}"},

		StoreUnreachable: {Recoverable, "The storage account, or what gives out the tokens for it, did not answer.", "Look at the network and the address of the store.", "{again}"},
		StoreThrottled:   {Recoverable, "The storage account is busy and asks for fewer requests.", "Wait, or lower the bandwidth in the policy. A premium account takes one recovery point in ten minutes.", "{again}"},
		StoreDenied:      {Critical, "The storage account refused the credentials.", "Correct the credential, its rights or its expiry.", "{again}"},
		StoreClock:       {Recoverable, "The clock of this machine is not that of the storage account, which refuses requests that are 15 minutes off.", "Set the clock, and have it kept by NTP.", "{again}"},
		StoreLimit:       {Critical, "A limit of the storage account was reached.", "Keep fewer recovery points, or use another kind of account.", "{again}"},
		StoreCorrupted:   {Recoverable, "Bytes were damaged on the way to the store; it refused them.", "Look at the network; a proxy may change bodies.", "{again}"},
		StoreArchived:    {Critical, "The blob is in the archive tier, where nothing can read it.", "Set its access tier to hot or cool, which takes hours, and correct the rule of the account that has moved it.", "{again}"},
		StoreUnfit:       {Prerequisite, "The store does not do what the product relies on.", "Mend what does not hold, or use another store.", "sitrep store probe"},
		Difference:       {Differs, "The replica differs from what it should be.", "", "sitrep resync {vm} --deep --now"},
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
