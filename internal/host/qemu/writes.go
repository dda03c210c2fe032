package qemu

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"

	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/inuse"
)

// Writes asks QEMU what the VM's drives write to, snapshots and pivots considered; see host.Writer.
func (h *Host) Writes(ctx context.Context, vm string) (files []string, known bool, err error) {
	power, err := h.State(ctx, vm)
	if err != nil || power != host.Running && power != host.Paused {
		return nil, false, err
	}
	q, err := connect(ctx, h.socket(vm))
	if err != nil {
		return nil, false, fault.In(err, vm, "")
	}
	defer q.conn.Close()
	var drives []struct {
		Inserted *struct {
			File     string `json:"file"`
			ReadOnly bool   `json:"ro"`
		} `json:"inserted"`
	}
	if err := q.do(ctx, "query-block", &drives); err != nil {
		return nil, false, fault.In(err, vm, "")
	}
	folder := folderOf(q.conn)
	for _, d := range drives {
		if d.Inserted == nil || d.Inserted.ReadOnly {
			continue
		}
		file := fileOf(d.Inserted.File)
		if !filepath.IsAbs(file) && folder != "" && !strings.Contains(file, "://") {
			file = filepath.Join(folder, file)
		}
		files = append(files, file)
	}
	return files, true, nil
}

// fileOf is the file behind the name of a node, which is one, or, of a node with options, a description of it.
func fileOf(name string) string {
	text, ok := strings.CutPrefix(name, "json:")
	if !ok {
		return strings.TrimPrefix(name, "file:")
	}
	var node map[string]any
	if json.Unmarshal([]byte(text), &node) != nil {
		return name
	}
	for {
		if file, ok := node["filename"].(string); ok {
			return file
		}
		below, ok := node["file"].(map[string]any)
		if !ok {
			return name
		}
		node = below
	}
}

// unheard says what a VM is doing whose control socket nobody listens to. That is no proof that it is off: QEMU may have been started
// with another socket. Its disks tell: as long as somebody uses one, the VM runs as far as anybody knows.
func (h *Host) unheard(vm string) (host.Power, error) {
	socket := h.socket(vm)
	for _, path := range h.c.Disks[vm] {
		user, err := inuse.Find(path)
		if err != nil {
			return host.Unknown, fault.Wrap(fault.HostUnreachable, err, "nobody listens at the VM's control socket %s, and it cannot be told whether its disk is in use", socket).At(path)
		}
		if user != nil {
			return host.Unknown, fault.New(fault.HostUnreachable, "nobody listens at the VM's control socket %s, and the VM is not off: %s. Correct qmp: in the site file, "+
				"or start QEMU with that socket", socket, user).At(path)
		}
	}
	return host.Off, nil
}
