package fastblob_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	az "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"
	"golang.org/x/sync/errgroup"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/progress"
	"sitrep/internal/replica"
	"sitrep/internal/replica/pageblob"
	"sitrep/internal/replica/pageblob/fastblob"
	"sitrep/internal/track"
	"sitrep/internal/track/scan"
	"sitrep/replicate"
)

const (
	envRole   = "SITREP_FASTBLOB_CLIENT" // what this process is to be: "seed" or "bare"; unset: the test
	envServer = "SITREP_FASTBLOB_SERVER"
	envDisk   = "SITREP_FASTBLOB_DISK"
	envMiB    = "SITREP_SEED_MIB" // of data in the disk of the benchmark, default 256

	blockSize = 64 << 10
	vm        = "vm"
)

func TestMain(m *testing.M) {
	role := os.Getenv(envRole)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := client(context.Background(), role); err != nil {
		fmt.Fprintln(os.Stderr, role+":", err)
		os.Exit(1)
	}
}

// cost is what a client has measured of itself.
type cost struct {
	Wall, CPU time.Duration
	Peak      int64 // most memory, bytes; 0: not known
}

// client is the process that is measured.
func client(ctx context.Context, role string) error {
	if path := os.Getenv("SITREP_SEED_PROFILE"); path != "" {
		f, err := os.Create(path + "." + role)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	began := time.Now()
	var err error
	switch role {
	case "seed":
		debug.SetGCPercent(pageblob.GCPercent)
		err = seed(ctx, os.Getenv(envServer), os.Getenv(envDisk))
	case "bare":
		err = bare(ctx, os.Getenv(envServer), os.Getenv(envDisk))
	default:
		err = errors.New("no such client")
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(cost{Wall: time.Since(began), Peak: peak()})
}

// peak is the most memory that this process had, in bytes, where the kernel says it.
func peak() int64 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(data)
	if m == nil {
		return 0
	}
	n, _ := strconv.ParseInt(string(m[1]), 10, 64)
	return n << 10
}

// seed makes the initial copy, or goes on with it, as the command does.
func seed(ctx context.Context, server, path string) error {
	store, err := pageblob.Open(pageblob.Config{
		Container: "c", ConnectionStringEnv: "X", Getenv: func(string) string { return server },
	}, pageblob.Options{Holder: "site", BytesPerSecond: -1, RequestsPerSecond: -1})
	if err != nil {
		return err
	}
	if _, err := store.Prepare(ctx, hrl.ID{}); err != nil {
		return err
	}
	r, err := store.Open(ctx, vm)
	if fault.Is(err, fault.NotProtected) {
		r, err = create(ctx, store, path)
	}
	if err != nil {
		return err
	}
	tracker, err := scan.Open(durable.OS(), scan.Config{VM: vm, Dir: filepath.Join(filepath.Dir(path), "track"), Disks: []track.Disk{
		{Name: "os", Path: path, Format: disk.Raw, BlockSize: blockSize}}})
	if err != nil {
		return err
	}
	st, err := r.Ledger().Load(ctx)
	if err != nil {
		return err
	}
	j := &replicate.Job{VM: vm, ReplicaID: st.Replica, Replica: r, Tracker: tracker, FS: durable.OS(),
		LogDir: map[string]string{"os": filepath.Dir(path)}, Keep: 1, Meter: progress.None(), Log: slog.New(slog.DiscardHandler), Now: time.Now,
		Pace: replicate.Pace{Unit: pageblob.CopyUnit, Tasks: pageblob.CopyTasks, Checkpoint: pageblob.Checkpoint}}
	_, err = j.Seed(ctx)
	return errors.Join(err, r.Close())
}

func create(ctx context.Context, store *pageblob.Store, path string) (replica.Replica, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return store.Create(ctx, replicate.First(vm, "vault", replica.Owner{Site: "site", Host: "h", Since: now}, []replica.Disk{
		{Name: "os", Source: path, Format: "raw", Size: info.Size(), BlockSize: blockSize}}, now))
}

// bare sends the same with as little as can be: eight workers that read 4 MiB, and send what of it is not zero.
func bare(ctx context.Context, server, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	c, err := container.NewClientFromConnectionString(server, "c", nil)
	if err != nil {
		return err
	}
	pages := c.NewPageBlobClient("bare.vhd")
	if _, err := pages.Create(ctx, info.Size(), nil); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	const unit = 4 << 20
	for range 8 {
		g.Go(func() error {
			buf := make([]byte, unit)
			for off := next.Add(unit) - unit; off < info.Size(); off = next.Add(unit) - unit {
				b := buf[:min(unit, info.Size()-off)]
				if _, err := f.ReadAt(b, off); err != nil {
					return err
				}
				for _, run := range dataOf(b) {
					_, err := pages.UploadPages(ctx, streaming.NopCloser(bytes.NewReader(b[run.Off:run.End()])),
						blob.HTTPRange{Offset: off + run.Off, Count: run.Len},
						&az.UploadPagesOptions{TransactionalValidation: blob.TransferValidationTypeComputeCRC64()})
					if err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// dataOf is the runs of blocks that are not zero.
func dataOf(b []byte) []block.Range {
	var set block.Set
	for i := range block.Count(int64(len(b)), blockSize) {
		if r := block.Nth(i, blockSize, int64(len(b))); !block.IsZero(b[r.Off:r.End()]) {
			set.Add(r)
		}
	}
	var out []block.Range
	for r := range set.All() {
		out = append(out, r)
	}
	return out
}

// makeDisk makes a disk with about so many bytes of data: of each GiB the first half is noise, a quarter is noise in 32 KiB
// blocks here and there, and a quarter is a hole. It returns how many bytes of it lie in blocks that are not zero.
func makeDisk(tb testing.TB, path string, data int64) (nonZero int64) {
	tb.Helper()
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	const half, seed = 32 << 10, 7
	tb.Logf("seed %d", seed)
	rng, noise := rand.New(rand.NewPCG(seed, 1)), rand.NewChaCha8([32]byte{seed})
	size := data / 10 * 16 / blockSize * blockSize // a half and a quarter of a half: five eighths
	area := max(size/16/blockSize*blockSize, blockSize)
	buf := make([]byte, blockSize)
	for off := int64(0); off < size; off += blockSize {
		clear(buf)
		zero := true
		for at := 0; at < len(buf); at += half {
			if kind := off / area % 4; kind < 2 || kind == 2 && rng.IntN(2) == 0 {
				_, _ = noise.Read(buf[at:][:half])
				zero = false
			}
		}
		if zero {
			continue
		}
		if _, err := f.WriteAt(buf, off); err != nil {
			tb.Fatal(err)
		}
		nonZero += blockSize
	}
	if err := errors.Join(f.Truncate(size), f.Sync()); err != nil {
		tb.Fatal(err)
	}
	return nonZero
}

// serve starts a server in this process and returns the connection string.
func serve(tb testing.TB, s *fastblob.Server) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	h := &http.Server{Handler: s}
	go func() { _ = h.Serve(l) }()
	tb.Cleanup(func() { h.Close() })
	return fastblob.ConnectionString(l.Addr().String())
}

// command is a client in a process of its own.
func command(tb testing.TB, role, server, path string) (cmd *exec.Cmd, out *bytes.Buffer) {
	tb.Helper()
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cmd, out = exec.Command(self), new(bytes.Buffer)
	cmd.Env = append(os.Environ(), envRole+"="+role, envServer+"="+server, envDisk+"="+path)
	cmd.Stdout, cmd.Stderr = out, io.MultiWriter(os.Stderr)
	return cmd, out
}

func measure(tb testing.TB, role, server, path string) cost {
	tb.Helper()
	cmd, out := command(tb, role, server, path)
	if err := cmd.Run(); err != nil {
		tb.Fatal(err)
	}
	var c cost
	if err := json.Unmarshal(out.Bytes(), &c); err != nil {
		tb.Fatal(err)
	}
	c.CPU = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return c
}

// BenchmarkSeedCost compares an initial copy with a bare loop that sends the same, in turns on the same machine. The clients are
// processes of their own, so the server's work is not theirs.
func BenchmarkSeedCost(b *testing.B) {
	mib := int64(256)
	if s := os.Getenv(envMiB); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		mib = n
	}
	path := filepath.Join(b.TempDir(), "disk.raw")
	nonZero := makeDisk(b, path, mib<<20)
	var seeds, bares cost
	rounds := 0
	for b.Loop() {
		rounds++
		for role, sum := range map[string]*cost{"seed": &seeds, "bare": &bares} {
			s := fastblob.New(nil)
			c := measure(b, role, serve(b, s), path)
			sum.Wall, sum.CPU, sum.Peak = sum.Wall+c.Wall, sum.CPU+c.CPU, max(sum.Peak, c.Peak)
			b.Logf("%s: %.3f s, %.3f CPU-s, %d MiB at most; %+v", role, c.Wall.Seconds(), c.CPU.Seconds(), c.Peak>>20, s.Counts())
			if err := os.RemoveAll(filepath.Join(filepath.Dir(path), "track")); err != nil {
				b.Fatal(err)
			}
		}
	}
	gib := float64(nonZero) * float64(rounds) / (1 << 30)
	b.ReportMetric(seeds.CPU.Seconds()/gib, "CPU-s/GiB")
	b.ReportMetric(bares.CPU.Seconds()/gib, "bare-CPU-s/GiB")
	b.ReportMetric(seeds.Wall.Seconds()/bares.Wall.Seconds(), "x-bare-wall")
	b.ReportMetric(float64(seeds.Peak>>20), "peak-MiB")
	b.ReportMetric(0, "ns/op")
}

// TestSeedSendsOnce: of an initial copy no more is sent than there is, and when it is killed and done again, little more: what was
// not noted, which depends neither on how large the disk is nor on how fast the service.
func TestSeedSendsOnce(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there is no SIGKILL")
	}
	if testing.Short() {
		t.Skip("the race detector multiplies the memory that is measured")
	}
	const again = 2*pageblob.Checkpoint + pageblob.CopyUnit
	data := int64(512 << 20)
	if os.Getenv("SITREP_LONG") != "" {
		data = 2 << 30
	}
	path := filepath.Join(t.TempDir(), "disk.raw")
	nonZero := makeDisk(t, path, data)
	s := fastblob.New(nil)
	c := measure(t, "seed", serve(t, s), path)
	sent := s.Counts().DataBytes
	t.Logf("%d MiB, %.4f times of it sent in %d requests, %d at once, with %d MiB of memory", nonZero>>20, float64(sent)/float64(nonZero),
		s.Counts().Puts, s.Counts().MostPuts, c.Peak>>20)
	if sent < nonZero || float64(sent) > 1.01*float64(nonZero) {
		t.Errorf("%d bytes were sent for %d of data", sent, nonZero)
	}
	if c.Peak > 200<<20 { // with what a busy machine adds to it; the benchmark tells it exactly
		t.Errorf("%d MiB of memory were in use", c.Peak>>20)
	}

	var process atomic.Pointer[os.Process]
	s = fastblob.New(func(total int64) {
		if p := process.Load(); p != nil && total > nonZero/2 {
			_ = p.Signal(syscall.SIGKILL)
		}
	})
	server := serve(t, s)
	cmd, _ := command(t, "seed", server, path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	process.Store(cmd.Process)
	if err := cmd.Wait(); err == nil {
		t.Fatal("the run was not killed")
	}
	process.Store(nil)
	before := s.Counts().DataBytes
	measure(t, "seed", server, path)
	sent = s.Counts().DataBytes
	t.Logf("killed after %d MiB, %.4f times of the data sent in all", before>>20, float64(sent)/float64(nonZero))
	if sent < nonZero || sent > nonZero+again {
		t.Errorf("%d bytes were sent for %d of data", sent, nonZero)
	}
}
