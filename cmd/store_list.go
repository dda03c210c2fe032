package cmd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// replicaObject is one replica in the store, whether or not the site file names its VM.
type replicaObject struct {
	VM             string         `json:"vm"`
	State          string         `json:"state"`
	Vault          string         `json:"vault"`
	InSite         bool           `json:"in_site_file"`
	Owner          *replica.Owner `json:"owner,omitempty"`
	LastReplicated *time.Time     `json:"last_replicated_at,omitempty"`
	Points         int            `json:"points"`
	Size           int64          `json:"size"` // of the disks, bytes
	Next           string         `json:"next_action,omitempty"`
	Error          *errorObject   `json:"error,omitempty"`
}

func (p *program) storeListCommand() *cli.Command {
	return &cli.Command{
		Name: "list", Usage: "the replicas in the store, those too that the site file does not name",
		Action: p.action("store list", func(ctx context.Context, c *cli.Context) error {
			if c.NArg() > 0 {
				return fault.New(fault.UsageError, "store list takes no names: it is about the store of the site file")
			}
			w, err := p.open()
			if err == nil {
				err = w.haveStore()
			}
			if err != nil {
				return err
			}
			w.res.Store = w.store.Describe()
			list, err := w.replicas(ctx, func(string) bool { return true })
			if err != nil {
				return err
			}
			w.res.Replicas = list
			return w.show(w.replicasText(list))
		}),
	}
}

// replicas looks at the replicas in the store whose names are wanted. One that cannot be read is in the list, with its error.
func (w *world) replicas(ctx context.Context, wanted func(vm string) bool) ([]replicaObject, error) {
	out := []replicaObject{}
	for name, err := range w.store.List(ctx) {
		if err != nil && name == "" {
			return nil, err
		}
		if !wanted(name) {
			continue
		}
		o := replicaObject{VM: name, InSite: w.names(name)}
		var st replica.State
		if err == nil {
			st, err = w.ledgerIn(ctx, name)
		}
		if err != nil {
			o.State, o.Error = outOfReach, w.object(err, name)
		} else {
			owner := st.Owner
			o.State, o.Vault, o.Owner, o.LastReplicated, o.Points = string(st.Phase), st.Vault, &owner, utc(st.AsOf), len(st.Points)
			o.Size = total(st.Disks, func(d replica.Disk) int64 { return d.Size })
			if w.isUnlisted(o) {
				o.Next = "sitrep store list"
			}
		}
		out = append(out, o)
	}
	return out, nil
}

// ledgerIn reads the ledger of a replica by its name in the store.
func (w *world) ledgerIn(ctx context.Context, name string) (st replica.State, err error) {
	r, err := w.store.View(ctx, name)
	if err != nil {
		return st, err
	}
	st, err = r.Ledger().Load(ctx)
	return st, errors.Join(err, r.Close())
}

// names says whether the site file has a VM of this name.
func (w *world) names(vm string) bool {
	_, err := w.site.VM(vm)
	return err == nil
}

// isUnlisted says that a replica is one of this vault that nothing replicates any more, because the site file does not name its VM. One
// that was kept when protection was disabled is no such: somebody wanted it so.
func (w *world) isUnlisted(o replicaObject) bool {
	return !o.InSite && o.Vault == w.site.Vault && o.State != string(replica.Retired)
}

// unlisted are the replicas of this vault that the site file does not name. A store that cannot be listed is told of by whoever needs it.
func (w *world) unlisted(ctx context.Context) (out []replicaObject) {
	if w.store == nil {
		return nil
	}
	list, err := w.replicas(ctx, func(vm string) bool { return !w.names(vm) })
	if err != nil {
		w.log.Info("the store cannot be listed", "error", err)
	}
	for _, o := range list {
		if w.isUnlisted(o) {
			out = append(out, o)
		}
	}
	return out
}

func (o replicaObject) text() string {
	last := "never replicated"
	if o.LastReplicated != nil {
		last = "as of " + stamp(*o.LastReplicated)
	}
	return fmt.Sprintf("its replica of this vault is in the store (%s, %s), and the site file does not name the VM: nothing replicates it", o.State, last)
}

// unlistedText says what can be done about them.
func (w *world) unlistedText(list []replicaObject) string {
	var b strings.Builder
	for _, o := range list {
		fmt.Fprintf(&b, "%s: %s\n  next: put the VM back into the site file, or: %s   (or: %s)\n", o.VM, o.text(),
			w.commands("sitrep store rename "+o.VM+" NEW"), w.commands("sitrep store remove "+o.VM))
	}
	return b.String()
}

func (w *world) replicasText(list []replicaObject) string {
	rows := [][]string{{"VM", "STATE", "VAULT", "SITE FILE", "WRITTEN BY", "LAST REPLICATED", "POINTS", "SIZE"}}
	var b strings.Builder
	for _, o := range list {
		named, by, last := "-", "-", "-"
		if o.InSite {
			named = "yes"
		}
		if o.Owner != nil {
			by = o.Owner.Site + " on " + o.Owner.Host
		}
		if o.LastReplicated != nil {
			last = w.when(*o.LastReplicated)
		}
		rows = append(rows, []string{o.VM, o.State, cmpOr(o.Vault, "-"), named, by, last, strconv.Itoa(o.Points), size(o.Size)})
		if o.Error != nil {
			fmt.Fprintf(&b, "%s: %s\n", o.VM, o.Error.Message)
		}
	}
	return table(rows) + b.String()
}
