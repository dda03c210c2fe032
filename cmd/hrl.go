package cmd

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
)

// logObject is what a change log is. Sizes are bytes.
type logObject struct {
	Version      int            `json:"version"`
	Ours         bool           `json:"ours"` // has what this product adds to the format
	Kind         string         `json:"kind,omitempty"`
	VM           string         `json:"vm,omitempty"`
	Disk         string         `json:"disk,omitempty"`
	Replica      string         `json:"replica,omitempty"`
	From         string         `json:"from,omitempty"`
	To           string         `json:"to,omitempty"`
	UniqueID     string         `json:"unique_id"`
	PreviousID   string         `json:"previous_unique_id,omitempty"`
	Sealed       bool           `json:"sealed"`
	Size         int64          `json:"size"`
	End          int64          `json:"end"`
	Torn         int64          `json:"torn_bytes"`
	MetadataSize int64          `json:"metadata_size"`
	Created      time.Time      `json:"created"`
	Modified     time.Time      `json:"modified"`
	RecordCount  int64          `json:"record_count"`
	DataBytes    int64          `json:"data_bytes"`
	ZeroBytes    int64          `json:"zero_bytes"`
	Verified     bool           `json:"verified"`
	Records      []recordObject `json:"records"`
}

type recordObject struct {
	Off  int64     `json:"offset"` // guest bytes
	Len  int64     `json:"length"`
	Zero bool      `json:"zero"`
	At   int64     `json:"file_offset"`
	Time time.Time `json:"time"`
}

// hrlInspect is the name of the command that looks at a log.
const hrlInspect = "hrl inspect"

// defaultRecords is how many records are listed unless told otherwise.
const defaultRecords = 20

func (p *program) hrlCommand() *cli.Command {
	return &cli.Command{
		Name: "hrl", Usage: "look at change logs",
		Action: p.action("hrl", func(_ context.Context, c *cli.Context) error {
			return fault.New(fault.UsageError, "hrl takes a subcommand: \"sitrep hrl inspect FILE\"")
		}),
		Subcommands: []*cli.Command{{
			Name: "inspect", Usage: "print a log's header, span and records, and check all its checksums", ArgsUsage: "FILE",
			Flags:  []cli.Flag{&cli.IntFlag{Name: "records", Usage: "list the first `N` records, 0 = all", Value: defaultRecords}},
			Action: p.action(hrlInspect, p.inspect),
		}},
	}
}

// inspect shows what can be shown of a log also when it is damaged; the damage is the error.
func (p *program) inspect(ctx context.Context, c *cli.Context) (err error) {
	if c.NArg() != 1 || c.Int("records") < 0 {
		return fault.New(fault.UsageError, "hrl inspect takes one file")
	}
	name := c.Args().First()
	p.res.File = name
	f, err := p.fs.Open(name)
	if err != nil {
		return wrongArgument(err, name)
	}
	defer func() { joined(&err, f.Close()) }()
	log, err := hrl.Open(f)
	if err != nil {
		return err
	}
	o := describeLog(log.Info())
	p.res.Log = o
	rerr := o.list(ctx, log, int64(c.Int("records")))
	verr := log.Verify(ctx)
	o.Verified = rerr == nil && verr == nil
	if err := p.show(o.text(name)); err != nil {
		return err
	}
	if verr != nil {
		return verr
	}
	return rerr
}

func describeLog(i hrl.Info) *logObject {
	o := &logObject{Version: i.Version, UniqueID: i.UniqueID.String(), Sealed: i.Sealed, Size: i.Size, End: i.End, Torn: i.Torn,
		MetadataSize: i.MetadataSize, Created: i.Created.UTC(), Modified: i.Modified.UTC(), Records: []recordObject{}}
	if !i.PreviousUniqueID.IsZero() {
		o.PreviousID = i.PreviousUniqueID.String()
	}
	if id := i.Identity; id != nil {
		o.Ours, o.Kind, o.VM, o.Disk, o.Replica = true, id.Kind.String(), id.VM, id.Disk, id.Replica.String()
		o.From, o.To = id.From.String(), id.To.String()
	}
	return o
}

// list counts the records and keeps the first few; 0 means all of them.
func (o *logObject) list(ctx context.Context, log *hrl.Log, most int64) error {
	for r, err := range log.Records(ctx) {
		if err != nil {
			return err
		}
		o.RecordCount++
		if r.Zero {
			o.ZeroBytes += r.Len
		} else {
			o.DataBytes += r.Len
		}
		if most == 0 || o.RecordCount <= most {
			o.Records = append(o.Records, recordObject{r.Off, r.Len, r.Zero, r.At, r.Time.UTC()})
		}
	}
	return nil
}

func (o *logObject) text(name string) string {
	sealed := "yes"
	if !o.Sealed {
		sealed = "no"
	}
	checks := "all hold"
	if !o.Verified {
		checks = "FAILED, see the error"
	}
	rows := [][]string{{"file", name}, {"format", fmt.Sprintf("[MS-HRL] version %d", o.Version)}}
	if o.Ours {
		rows = append(rows, []string{"log of", fmt.Sprintf("VM %s, disk %s (%s)", o.VM, o.Disk, o.Kind)},
			[]string{"replica", o.Replica}, []string{"from", o.From}, []string{"to", o.To})
	}
	rows = append(rows, [][]string{
		{"unique ID", o.UniqueID}, {"previous ID", cmpOr(o.PreviousID, "-")},
		{"sealed", sealed}, {"size", fmt.Sprintf("%s (%d bytes, content ends at %d)", size(o.Size), o.Size, o.End)},
		{"torn tail", size(o.Torn)}, {"created", o.Created.Format(time.RFC3339)},
		{"records", fmt.Sprintf("%d: %s of data, %s of zeros", o.RecordCount, size(o.DataBytes), size(o.ZeroBytes))},
		{"checksums", checks},
	}...)
	var b strings.Builder
	b.WriteString(table(rows))
	if len(o.Records) == 0 {
		return b.String()
	}
	list := [][]string{{"DISK OFFSET", "LENGTH", "KIND", "FILE OFFSET"}}
	for _, r := range o.Records {
		kind, at := "data", fmt.Sprint(r.At)
		if r.Zero {
			kind, at = "zeros", "-"
		}
		list = append(list, []string{fmt.Sprint(r.Off), fmt.Sprint(r.Len), kind, at})
	}
	b.WriteString("\n" + table(list))
	if more := o.RecordCount - int64(len(o.Records)); more > 0 {
		fmt.Fprintf(&b, "and %s more; --records 0 lists all\n", plural(more, "record"))
	}
	return b.String()
}
