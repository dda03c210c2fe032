module sitrep

go 1.26.8

require golang.org/x/sys v0.49.0

require (
	github.com/klauspost/cpuid/v2 v2.2.10 // indirect
	github.com/zeebo/xxh3 v1.1.0 // indirect
	gopkg.in/yaml.v3 v3.0.1 // indirect
)
