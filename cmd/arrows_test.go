package cmd_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// pkg is a package of the product with what it imports, its tests left out.
type pkg struct{ imports, deps []string }

func packages(t *testing.T) map[string]pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}}|{{join .Imports \" \"}}|{{join .Deps \" \"}}", "sitrep/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	list := map[string]pkg{}
	for line := range strings.Lines(string(out)) {
		part := strings.Split(strings.TrimSpace(line), "|")
		list[part[0]] = pkg{strings.Fields(part[1]), strings.Fields(part[2])}
	}
	if len(list) < 10 {
		t.Fatalf("go list found %d packages only", len(list))
	}
	return list
}

// TestOnlyImporters: some libraries are the business of one package.
func TestOnlyImporters(t *testing.T) {
	only := map[string]string{
		"github.com/urfave/cli":                                 "sitrep/cmd",
		"github.com/schollz/progressbar":                        "sitrep/cmd",
		"golang.org/x/term":                                     "sitrep/cmd",
		"gopkg.in/yaml":                                         "sitrep/internal/site",
		"github.com/Azure/azure-sdk-for-go/sdk/azcore":          "sitrep/internal/replica/pageblob",
		"github.com/Azure/azure-sdk-for-go/sdk/azidentity":      "sitrep/internal/replica/pageblob",
		"github.com/Azure/azure-sdk-for-go/sdk/storage":         "sitrep/internal/replica/pageblob",
		"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager": "sitrep/internal/host/azure",
	}
	for path, p := range packages(t) {
		for _, imp := range p.imports {
			for lib, owner := range only {
				if strings.HasPrefix(imp, lib) && path != owner && !strings.HasPrefix(path, owner+"/") {
					t.Errorf("%s imports %s, which only %s may", path, imp, owner)
				}
			}
		}
	}
}

// TestArrows: main -> cmd -> verbs -> contracts -> nouns, never the other way, and verbs know no concrete store, tracker
// or host.
func TestArrows(t *testing.T) {
	verb := func(path string) bool {
		return slices.Contains([]string{"replicate", "resync", "failover"}, verbOf(path))
	}
	concrete := []string{"sitrep/internal/replica/dir", "sitrep/internal/replica/mem", "sitrep/internal/replica/pageblob",
		"sitrep/internal/track/scan", "sitrep/internal/host/", "sitrep/internal/site", "sitrep/internal/state", "sitrep/cmd"}
	for path, p := range packages(t) {
		for _, dep := range p.deps {
			switch from, to := verbOf(path), verbOf(dep); {
			case strings.HasPrefix(path, "sitrep/internal/") && (verb(dep) || dep == "sitrep/cmd"):
				t.Errorf("noun %s depends on %s", path, dep)
			case verb(path) && !isTestHelper(path) && slices.ContainsFunc(concrete, func(c string) bool { return strings.HasPrefix(dep, c) }):
				t.Errorf("verb %s depends on %s", path, dep)
			case from == "replicate" && (to == "resync" || to == "failover"), from == "resync" && to == "failover":
				t.Errorf("%s depends on %s", path, dep)
			}
		}
		for _, imp := range p.imports {
			if path == "sitrep" && strings.HasPrefix(imp, "sitrep/") && imp != "sitrep/cmd" {
				t.Errorf("main imports %s", imp)
			}
		}
	}
}

// verbOf is the first folder of a package of the product, which names the verb that it belongs to if it belongs to one.
func verbOf(path string) string {
	rest, _ := strings.CutPrefix(path, "sitrep/")
	first, _, _ := strings.Cut(rest, "/")
	return first
}

// isTestHelper says whether a package is there for tests only, which may put concrete stores and trackers together.
func isTestHelper(path string) bool { return strings.HasSuffix(path, "test") }

// TestTestHelpersAreForTests: what is exempted above is in no program.
func TestTestHelpersAreForTests(t *testing.T) {
	for path, p := range packages(t) {
		for _, imp := range p.imports {
			if strings.HasPrefix(imp, "sitrep/") && isTestHelper(imp) && !isTestHelper(path) {
				t.Errorf("%s imports %s, which is for tests", path, imp)
			}
		}
	}
}
