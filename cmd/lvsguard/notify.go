package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/lvsguard/lvsguard/keepalived"
)

func (a *app) notifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "notify (INSTANCE|GROUP) NAME STATE PRIORITY | notify STATE",
		Short: "keepalived's hook: tells the guard to look at the roles again",
		Long: `Tell the running guard that a VRRP role may have changed. keepalived calls this
from notify (with four arguments), notify_master, notify_backup, notify_fault
and notify_stop (with the state alone). What the arguments say is not believed:
the guard looks itself which addresses this host holds. The hook returns at
once, and always with status 0, with the guard alive or dead.`,
		RunE: func(_ *cobra.Command, args []string) error {
			// Whatever is wrong is said and is no failure: a hook that fails must not
			// matter to keepalived.
			if _, err := keepalived.ParseNotify(args); err != nil {
				fmt.Fprintf(a.errOut, "lvsguard: notify: %v\n", err)
			}
			if err := keepalived.LookAgain(a.hookSocket()); err != nil {
				fmt.Fprintf(a.errOut, "lvsguard: notify: %v\n", err)
			}
			return nil
		},
	}
}
