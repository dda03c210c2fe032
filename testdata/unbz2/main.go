// Command unbz2 unpacks a .bz2 file: the disk images of this folder are kept packed, and a new machine may have no bzip2.
//
//	go run ./testdata/unbz2 FROM.bz2 TO
package main

import (
	"compress/bzip2"
	"fmt"
	"io"
	"os"
)

func main() {
	if err := unpack(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "unbz2:", err)
		os.Exit(1)
	}
}

func unpack(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: unbz2 FROM.bz2 TO")
	}
	in, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(args[1])
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, bzip2.NewReader(in)); err != nil {
		return err
	}
	return out.Close()
}
