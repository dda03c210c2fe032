#!/usr/bin/env bash
# Runs the tests, and says at the end how many were skipped, why, and what to install for them. Needs Go and bash.
# Usage: testdata/test.sh [ARGUMENTS OF go test]; without any it is all packages
set -uo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- ./...
go test -json "$@" | go run ./testdata/skips
