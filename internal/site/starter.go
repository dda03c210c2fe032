package site

import _ "embed" // for the starter file

//go:embed starter.yaml
var starter string

// Starter returns the commented site file that "sitrep init" writes. Parse accepts it.
func Starter() []byte { return []byte(starter) }
