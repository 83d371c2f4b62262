package guard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lvsguard/lvsguard/nft"
)

// Install makes the table once, without a daemon: it counts what IPVS serves
// now and what cfg names, and drops nothing. If IPVS cannot be read, a table is
// made only for what cfg names.
func Install(ctx context.Context, cfg *Config, k Kernel) (nft.Changed, error) {
	r := roster{cfg: cfg}
	served, ipvsErr := k.IPVS.Services(ctx)
	r.see(time.Now(), served)
	want := watchedAddresses(r.list())
	if len(want) == 0 {
		return nft.Changed{}, errors.Join(errors.New("there is nothing to count: IPVS has no TCP services, and the configuration names no address under watch"), ipvsErr)
	}
	table, err := k.OpenTable(cfg.table())
	if err != nil {
		return nft.Changed{}, fmt.Errorf("open the nft table: %w", err)
	}
	defer table.Close()
	return table.Ensure(want)
}
