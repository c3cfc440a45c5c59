// Command etcd is etcd's own server, built from the published module, since no
// prebuilt binary is needed for that. Which version it is, the .mod file says:
//
//	go build -modfile=3.6.mod -o etcd-3.6 .
//
// go.mod itself is 3.7's.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
