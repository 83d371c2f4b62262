/*
 * floor [-H] FILE [ROUNDS]: how fast can the handshakes in a capture be followed?
 *
 * A yardstick for lvsguard, not a tool: Ethernet, IPv4 and TCP only, a classic
 * capture in this machine's byte order, one filter. It keeps the states that
 * 'lvsguard handshakes' keeps, with the same meaning, in a table that was
 * touched before, in memory that was read before, and fetches a packet's slot
 * while it parses the packets behind it. It prints one JSON object: counts, and
 * the processor time of parsing and tracking a packet, the least of ROUNDS.
 * With -H the table is in huge pages, if the kernel has some.
 *
 * gcc -O2 -march=native -o floor floor.c
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
	FIN = 0x01, SYN = 0x02, RST = 0x04, ACK = 0x10,

	AHEAD = 16,            /* packets parsed before the first of them is tracked */
	BITS = 21,             /* of the number of slots */
	SLOTS = 1 << BITS,
	FULL = SLOTS / 8 * 7,
	TIMEOUT = 60 * 1000,   /* milliseconds since the last segment */
	TURN = 16 * 1000,      /* in which the sweep comes around the table */
	BUCKETS = 32,          /* of a histogram: powers of two of microseconds */
};

/* What a slot, which is free with state 0, remembers. */
enum { OPEN = 1, ANSWERED = 2, DUP_SYN = 4, DUP_SYNACK = 8 };

struct key {
	uint64_t addresses;    /* client and server, as they stand in the packet */
	uint32_t ports;
};

struct slot {
	uint64_t addresses;
	uint32_t ports;
	uint32_t client_isn, server_isn;
	uint32_t began;        /* microseconds since the first packet; it may wrap around */
	uint32_t last;         /* milliseconds since then */
	uint32_t state;
};

struct segment {
	struct key key;        /* with the client first, if the sender of the packet is one */
	uint32_t home;
	uint32_t seq, ack;
	uint32_t flags;
	int64_t time;          /* microseconds since the first packet */
};

static struct {
	uint64_t packets, undecoded, attempts, pending;
	uint64_t success, success_dupsyn, success_dupsynack;
	uint64_t reject, aborted, timeout, failure_dupsyn;
	uint64_t complete[BUCKETS], answer[BUCKETS];
} count;

static struct slot *table;
static uint32_t swept;         /* the slot that the sweep comes to next */
static uint32_t swept_until;   /* milliseconds since the first packet */

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static inline uint32_t home_of(struct key k)
{
	unsigned __int128 product = (unsigned __int128)(k.addresses ^ 0x9e3779b97f4a7c15) *
		(k.ports ^ 0xa0761d6478bd642f);
	return ((uint64_t)(product >> 64) ^ (uint64_t)product) >> (64 - BITS);
}

static inline struct key reversed(struct key k)
{
	return (struct key){k.addresses >> 32 | k.addresses << 32, k.ports >> 16 | k.ports << 16};
}

/* The slot of a key, or the free one where it would be. */
static inline struct slot *find(struct key k, uint32_t at)
{
	for (;; at = (at + 1) % SLOTS) {
		struct slot *s = &table[at];
		if (!s->state || (s->addresses == k.addresses && s->ports == k.ports))
			return s;
	}
}

/* Frees a slot and moves up those behind it that would not be found any more. */
static void release(struct slot *s)
{
	uint32_t hole = s - table;
	for (uint32_t at = (hole + 1) % SLOTS; table[at].state; at = (at + 1) % SLOTS) {
		uint32_t home = home_of((struct key){table[at].addresses, table[at].ports});
		if ((at - home) % SLOTS >= (at - hole) % SLOTS) {
			table[hole] = table[at];
			hole = at;
		}
	}
	table[hole].state = 0;
	count.pending--;
}

static inline void fail(struct slot *s, uint64_t *how)
{
	++*how;
	count.failure_dupsyn += !!(s->state & DUP_SYN);
	release(s);
}

static inline void note(uint64_t *histogram, uint32_t microseconds)
{
	histogram[31 - __builtin_clz(microseconds | 1)]++;
}

/* 1 to 65,536 past isn? */
static inline int acknowledges(uint32_t number, uint32_t isn)
{
	return number - isn - 1 < 65536;
}

static inline int late(struct slot *s, uint32_t ms)
{
	return (int32_t)(ms - s->last) >= TIMEOUT;
}

static void track(struct segment *g)
{
	uint32_t ms = g->time / 1000;
	struct key k = g->key;
	struct slot *s;

	switch (g->flags) {
	case SYN:
		s = find(k, g->home);
		if (s->state) {
			if (!late(s, ms) && s->client_isn == g->seq) {
				s->state |= DUP_SYN;
				s->last = ms;
				return;
			}
			fail(s, &count.timeout);
			s = find(k, g->home);
		}
		if (count.pending == FULL) {
			fprintf(stderr, "floor: more than %d attempts are pending: raise BITS in floor.c\n", FULL);
			exit(1);
		}
		*s = (struct slot){
			.addresses = k.addresses, .ports = k.ports, .client_isn = g->seq,
			.began = g->time, .last = ms, .state = OPEN,
		};
		count.attempts++;
		count.pending++;
		return;

	case SYN | ACK: /* the parser has turned the key around */
		s = find(k, g->home);
		if (!s->state || !acknowledges(g->ack, s->client_isn))
			return;
		if (late(s, ms)) {
			fail(s, &count.timeout);
			return;
		}
		if (!(s->state & ANSWERED)) {
			note(count.answer, (uint32_t)g->time - s->began);
			s->server_isn = g->seq;
			s->state |= ANSWERED;
		} else if (s->server_isn == g->seq) {
			s->state |= DUP_SYNACK;
		}
		s->last = ms;
		return;

	case ACK:
		s = find(k, g->home);
		if (!s->state)
			return;
		if (late(s, ms)) {
			fail(s, &count.timeout);
			return;
		}
		if (!acknowledges(g->seq, s->client_isn) ||
		    ((s->state & ANSWERED) && !acknowledges(g->ack, s->server_isn)))
			return;
		note(count.complete, (uint32_t)g->time - s->began);
		count.success++;
		count.success_dupsyn += !!(s->state & DUP_SYN);
		count.success_dupsynack += !!(s->state & DUP_SYNACK);
		release(s);
		return;

	case RST: /* from the server mostly: the parser has turned the key around */
		s = find(k, g->home);
		if (s->state) {
			fail(s, late(s, ms) ? &count.timeout : &count.reject);
			return;
		}
		k = reversed(k);
		s = find(k, home_of(k));
		if (s->state)
			fail(s, late(s, ms) ? &count.timeout : &count.aborted);
	}
}

/* Goes over as much of the table as time has passed. */
static void sweep(uint32_t ms)
{
	int64_t slots = (int64_t)(int32_t)(ms - swept_until) * SLOTS / TURN;
	if (slots < 64)
		return;
	swept_until = ms;
	for (slots = slots < SLOTS ? slots : SLOTS; slots; slots--) {
		struct slot *s = &table[swept];
		if (s->state && late(s, ms))
			fail(s, &count.timeout); /* and look at what moved up */
		else
			swept = (swept + 1) % SLOTS;
	}
}

static inline uint16_t be16(const uint8_t *p)
{
	uint16_t v;
	memcpy(&v, p, sizeof v);
	return __builtin_bswap16(v);
}

static inline uint32_t raw32(const uint8_t *p)
{
	uint32_t v;
	memcpy(&v, p, sizeof v);
	return v;
}

static inline uint32_t be32(const uint8_t *p)
{
	return __builtin_bswap32(raw32(p));
}

/* Whether the packet is a TCP segment. */
static inline int parse(const uint8_t *p, uint32_t length, struct segment *g)
{
	static const uint8_t kind[] = {
		[SYN] = SYN, [SYN | ACK] = SYN | ACK,
		[ACK] = ACK, [ACK | FIN] = ACK,
		[RST] = RST, [RST | ACK] = RST, [RST | FIN] = RST, [RST | ACK | FIN] = RST,
		[RST | SYN] = RST, [RST | SYN | ACK] = RST, [RST | SYN | FIN] = RST, [RST | SYN | ACK | FIN] = RST,
	};
	if (length < 14 + 20 || be16(p + 12) != 0x0800)
		return 0;
	const uint8_t *ip = p + 14;
	uint32_t header = (ip[0] & 15) * 4, total = be16(ip + 2);
	if (ip[0] >> 4 != 4 || header < 20 || total < header + 20 || length - 14 < header + 20 ||
	    ip[9] != 6 || be16(ip + 6) & 0x1fff)
		return 0;
	const uint8_t *tcp = ip + header;
	if (tcp[12] >> 4 < 5 || total < header + (tcp[12] >> 4) * 4)
		return 0;
	memcpy(&g->key.addresses, ip + 12, 8);
	memcpy(&g->key.ports, tcp, 4);
	g->seq = be32(tcp + 4);
	g->ack = be32(tcp + 8);
	g->flags = kind[tcp[13] & (FIN | SYN | RST | ACK)];
	if (g->flags == (SYN | ACK) || g->flags == RST)
		g->key = reversed(g->key);
	g->home = home_of(g->key);
	return 1;
}

/* Parses and tracks a whole capture. */
static void follow(const uint8_t *p, const uint8_t *end, uint32_t fraction)
{
	struct segment ahead[AHEAD];
	int64_t base = end - p < 28 ? 0 : raw32(p + 24);
	int more = 1;

	p += 24;
	while (more) {
		uint32_t n = 0;
		while (n < AHEAD) {
			uint32_t length;
			if (end - p < 16 || end - p - 16 < (length = raw32(p + 8))) {
				more = 0;
				break;
			}
			struct segment *g = &ahead[n];
			count.packets++;
			if (parse(p + 16, length, g)) {
				g->time = (raw32(p) - base) * 1000000 + raw32(p + 4) / fraction;
				__builtin_prefetch(&table[g->home], 1);
				n++;
			} else {
				count.undecoded++;
			}
			p += 16 + length;
		}
		for (uint32_t i = 0; i < n; i++)
			track(&ahead[i]);
		if (n)
			sweep(ahead[n - 1].time / 1000);
	}
}

static uint64_t processor_time(void)
{
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void print_histogram(const char *name, uint64_t *histogram)
{
	printf(", \"%s\": [", name);
	for (int i = 0; i < BUCKETS; i++)
		printf("%s%lu", i ? ", " : "", histogram[i]);
	printf("]");
}

int main(int argc, char **argv)
{
	int huge = argc > 1 && !strcmp(argv[1], "-H");
	argc -= huge;
	argv += huge;
	if (argc < 2 || argc > 3) {
		fprintf(stderr, "usage: floor [-H] FILE [ROUNDS]\n");
		return 2;
	}
	int fd = open(argv[1], O_RDONLY);
	struct stat st;
	if (fd < 0 || fstat(fd, &st))
		die(argv[1]);
	const uint8_t *file = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
	if (file == MAP_FAILED)
		die("map the capture");
	uint32_t fraction = 0;
	if (st.st_size >= 24)
		fraction = raw32(file) == 0xa1b2c3d4 ? 1 : raw32(file) == 0xa1b23c4d ? 1000 : 0;
	if (!fraction || raw32(file + 20) != 1) {
		fprintf(stderr, "floor: %s is no classic Ethernet capture in this machine's byte order\n", argv[1]);
		return 1;
	}
	table = mmap(NULL, SLOTS * sizeof *table, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (table == MAP_FAILED)
		die("make the table");
	if (huge && madvise(table, SLOTS * sizeof *table, MADV_HUGEPAGE))
		die("ask for huge pages");

	uint64_t least = UINT64_MAX;
	volatile uint8_t touched = 0;
	for (int round = argc > 2 ? atoi(argv[2]) : 1; round > 0; round--) {
		memset(table, 0, SLOTS * sizeof *table);
		memset(&count, 0, sizeof count);
		swept = swept_until = 0;
		for (off_t i = 0; i < st.st_size; i += 4096)
			touched += file[i];
		uint64_t start = processor_time();
		follow(file, file + st.st_size, fraction);
		uint64_t took = processor_time() - start;
		least = took < least ? took : least;
	}

	printf("{\"packets\": %lu, \"undecoded\": %lu, \"attempts\": %lu, \"pending\": %lu", count.packets, count.undecoded,
	       count.attempts, count.pending);
	printf(", \"success\": {\"total\": %lu, \"dupsyn\": %lu, \"dupsynack\": %lu}", count.success, count.success_dupsyn,
	       count.success_dupsynack);
	printf(", \"failure\": {\"total\": %lu, \"reject\": %lu, \"timeout\": %lu, \"aborted\": %lu, \"dupsyn\": %lu}",
	       count.reject + count.timeout + count.aborted, count.reject, count.timeout, count.aborted, count.failure_dupsyn);
	print_histogram("complete", count.complete);
	print_histogram("answer", count.answer);
	printf(", \"ns_per_packet\": %.2f}\n", count.packets ? (double)least / count.packets : 0);
}
