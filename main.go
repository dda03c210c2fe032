// Sitrep protects virtual machines against the loss of a site: see the README.
package main

import (
	"context"
	"os"

	"sitrep/cmd"
)

func main() {
	os.Exit(cmd.Run(context.Background(), os.Args, os.Stdin, os.Stdout, os.Stderr))
}
