/*
 * states [info]: how fast can TCP sockets be listed at all?
 *
 * A yardstick for lvsguard, not a tool: it asks the kernel for all TCP sockets
 * but the listening ones, over sock_diag, and does nothing with them but count
 * by state. With "info" it has the kernel add INET_DIAG_INFO to each socket,
 * which the round-trip times are in, and looks at those.
 *
 * It asks in the way that is the cheapest for the kernel: with TCPDIAG_GETSOCK,
 * which walks the table of sockets once for both families, and a buffer of the
 * size that the kernel fills at most.
 *
 * gcc -O2 -o states states.c
 */
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
	BUFFER = 32 << 10,
	LISTEN = 10,
	STATES = 12,
};

static char buffer[BUFFER] __attribute__((aligned(8)));

int main(int argc, char **argv)
{
	unsigned long count[256] = {0}, timed = 0;
	int info = argc > 1 && !strcmp(argv[1], "info");
	struct {
		struct nlmsghdr header;
		struct inet_diag_req body;
	} request = {
		.header = {
			.nlmsg_len = sizeof request,
			.nlmsg_type = TCPDIAG_GETSOCK,
			.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
		},
		.body = {
			.idiag_family = AF_INET,
			.idiag_ext = info ? 1 << (INET_DIAG_INFO - 1) : 0,
			.idiag_states = ((1 << STATES) - 2) & ~(1 << LISTEN),
		},
	};
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);

	if (fd < 0 || send(fd, &request, sizeof request, 0) < 0) {
		perror("states: sock_diag");
		return 1;
	}
	for (;;) {
		ssize_t n = recv(fd, buffer, sizeof buffer, 0);
		struct nlmsghdr *m = (void *)buffer;

		if (n < 0) {
			perror("states: recv");
			return 1;
		}
		for (; NLMSG_OK(m, n); m = NLMSG_NEXT(m, n)) {
			struct inet_diag_msg *socket = NLMSG_DATA(m);

			if (m->nlmsg_type == NLMSG_DONE)
				goto done;
			if (m->nlmsg_type == NLMSG_ERROR) {
				fprintf(stderr, "states: the kernel refuses; is tcp_diag loaded?\n");
				return 1;
			}
			count[socket->idiag_state]++;
			if (info) {
				struct nlattr *a = (void *)(socket + 1);
				char *end = (char *)m + m->nlmsg_len;

				while ((char *)a < end && a->nla_type != INET_DIAG_INFO)
					a = (void *)((char *)a + NLMSG_ALIGN(a->nla_len));
				if ((char *)a < end && ((struct tcp_info *)(a + 1))->tcpi_rtt)
					timed++;
			}
		}
	}
done:
	for (int state = 0; state < 256; state++)
		if (count[state])
			printf("%d %lu\n", state, count[state]);
	if (info)
		printf("timed %lu\n", timed);
	return 0;
}
