package machine

import "os"

// systemID is machine-id(5).
func systemID() string {
	for _, file := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		if data, err := os.ReadFile(file); err == nil && len(data) > 0 && string(data) != "uninitialized\n" {
			return string(data)
		}
	}
	return ""
}
