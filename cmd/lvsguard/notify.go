package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/keepalived"
)

func (a *app) notifyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "notify (INSTANCE|GROUP) NAME STATE PRIORITY | notify STATE",
		Short: "keepalived's hook: tells the guard to look at the roles again",
		Long: `Tell the running guard that a VRRP role may have changed. keepalived calls this
from notify (with four arguments), notify_master, notify_backup, notify_fault
and notify_stop (with the state alone). What the arguments say is not believed:
the guard looks itself which addresses this host holds. The hook returns at
once, and always with status 0, with the guard alive or dead.`,
		RunE: func(_ *cobra.Command, args []string) error {
			_, err := keepalived.ParseNotify(args)
			return a.lookAgain(err)
		},
	}
	// An instance may be called -1.
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return a.lookAgain(err) })
	return c
}

// lookAgain says what is wrong with the hook's arguments and tells the guard
// all the same. Nothing is a failure: to keepalived the hook must not matter.
func (a *app) lookAgain(wrong error) error {
	err := keepalived.LookAgain(a.hookSocket())
	for _, err := range []error{wrong, err} {
		if err != nil {
			fmt.Fprintf(a.errOut, "lvsguard: notify: %v\n", err)
		}
	}
	return nil
}
