package cmd

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"sitrep/internal/durable"
)

func testApp() *program { return &program{fs: durable.OS()} }

func TestPermute(t *testing.T) {
	tests := []struct{ in, want string }{
		{"sitrep", "sitrep"},
		{"sitrep status", "sitrep status"},
		{"sitrep delta web01 --json", "sitrep --json delta -- web01"},
		{"sitrep delta web01 --capture-only db01 --site x.yaml", "sitrep --site x.yaml delta --capture-only -- web01 db01"},
		{"sitrep --site x.yaml delta web01", "sitrep --site x.yaml delta -- web01"},
		{"sitrep --site=x.yaml delta web01", "sitrep --site=x.yaml delta -- web01"},
		{"sitrep -json delta web01", "sitrep -json delta -- web01"},
		{"sitrep verify web01 --budget 60s", "sitrep verify --budget 60s -- web01"},
		{"sitrep status --cloud gold --all", "sitrep status --cloud gold --all"},
		{"sitrep delta -- --json web01", "sitrep delta -- --json web01"},
		{"sitrep delta web01 -- --json", "sitrep delta -- web01 --json"},
		{"sitrep delta --", "sitrep delta --"},
		{"sitrep jobs show ID --json", "sitrep --json jobs show -- ID"},
		{"sitrep jobs --json show ID", "sitrep --json jobs show -- ID"},
		{"sitrep jobs --vm web01", "sitrep jobs --vm web01"},
		{"sitrep hrl inspect FILE --records 3", "sitrep hrl inspect --records 3 -- FILE"},
		{"sitrep delta show", "sitrep delta -- show"},
		{"sitrep delta delta", "sitrep delta -- delta"},
		{"sitrep delta help", "sitrep delta -- help"},
		{"sitrep delta --nonsense web01", "sitrep delta --nonsense -- web01"},
		{"sitrep nonsense web01", "sitrep nonsense -- web01"},
		{"sitrep delta --site", "sitrep --site"},
		{"sitrep delta -", "sitrep delta -- -"},
	}
	app := testApp().app()
	app.Setup()
	for _, tt := range tests {
		got := strings.Join(permute(app, strings.Fields(tt.in)), " ")
		if got != tt.want {
			t.Errorf("permute(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// TestPermuteKeeps tries arguments in every order that chance makes: none is lost, and names keep their order.
func TestPermuteKeeps(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	app := testApp().app()
	app.Setup()
	for range 2000 {
		pieces := [][]string{{"web01"}, {"db01"}, {"--json"}, {"--site", "s.yaml"}, {"--cloud", "c"}, {"--capture-only"}, {"--state=x"}}
		rng.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		args := []string{"sitrep", "delta"}
		var names []string
		for _, p := range pieces {
			args = append(args, p...)
			if !strings.HasPrefix(p[0], "-") {
				names = append(names, p[0])
			}
		}
		got := permute(app, args)
		a, b := slices.Sorted(slices.Values(args)), slices.Sorted(slices.Values(slices.DeleteFunc(slices.Clone(got), func(s string) bool { return s == "--" })))
		if !slices.Equal(a, b) {
			t.Fatalf("%q became %q", args, got)
		}
		if !slices.Equal(got[len(got)-2:], names) {
			t.Fatalf("%q became %q: names out of order", args, got)
		}
	}
}
