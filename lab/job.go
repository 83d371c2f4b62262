package lab

import (
	"encoding/json"
	"fmt"
	"os"
)

// JobFile is where the initramfs holds the Job for the guest's init.
const JobFile = "/job.json"

// Job is what the guest does between boot and power-off. The host writes it, the guest's init reads it.
type Job struct {
	// RootModules are the kernel modules without which the guest cannot reach its root, as files of the initramfs in
	// loading order.
	RootModules []string
	// Modules are names for modprobe, loaded as soon as the root is there.
	Modules []string
	// Commands run one after the other, whatever the status of those before.
	Commands []Command
	// Above says that there is a share named above, to be laid over the host's root.
	Above bool
	// Output is the one directory, by its name on both sides, that the guest shares with the host for writing.
	Output string
	// Terminal is nil when no person is watching: the guest then hands bytes on as they are.
	Terminal *Terminal
}

// Command is one program to run in the guest, by its name in the host's file system.
type Command struct {
	Args []string
	Dir  string
	Env  []string // what is added to init's own PATH, HOME and TERM
}

// Terminal is the size and kind of the terminal that the guest's console is shown on.
type Terminal struct {
	Type          string // as in TERM
	Rows, Columns uint16
}

// ReadJob reads the Job that came with the initramfs.
func ReadJob() (Job, error) {
	var job Job
	text, err := os.ReadFile(JobFile)
	if err != nil {
		return job, err
	}
	if err := json.Unmarshal(text, &job); err != nil {
		return job, fmt.Errorf("read %s: %w", JobFile, err)
	}
	return job, nil
}

// statusFile is the file in Job.Output that tells how the job ended. It is there only if the guest came to its end.
const statusFile = ".lab-status"

// WriteStatus tells the host the exit status of the first command that failed, or 0.
func WriteStatus(output string, status int) error {
	return os.WriteFile(output+"/"+statusFile, fmt.Appendln(nil, status), 0o644)
}
