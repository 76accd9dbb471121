// SPDX-License-Identifier: GPL-2.0
/*
 * As many connections as there can be: each has a receiver that runs, however the kernel spreads
 * its workers. On a machine with many memory nodes it gives each node a share of them; to see that,
 * boot with numa=fake=16.
 */
#include "kselftest_harness.h"
#include <dirent.h>
#include <linux/aio_abi.h>
#include <sched.h>
#include <sys/resource.h>

#include "nbd_nlpeer.h"

#define CONNECTIONS	256
#define MANY_SIZE	(64UL << 20)
/* As many tags as a queue has. */
#define DEPTH		128
/* What a server works on of a connection, and a payload that others would wait for. */
#define AT_ONCE		16
#define LONG		(64 << 10)

struct many_shared {
	_Atomic int hold;			/* answers wait */
	_Atomic int requests[CONNECTIONS], all;
	_Atomic int break_it[CONNECTIONS];	/* send what is no reply */
	_Atomic int eof[CONNECTIONS], disc[CONNECTIONS];
	_Atomic int io_errors, io_done;
};

FIXTURE(many)
{
	struct nbd_dev dev;
	struct many_shared *sh;
	int fd[CONNECTIONS], peer[CONNECTIONS];
	struct agent a;
	uint32_t do_it;
};

FIXTURE_VARIANT(many)
{
	bool netlink;
};

FIXTURE_VARIANT_ADD(many, ioctl) { };
FIXTURE_VARIANT_ADD(many, netlink) { .netlink = true };

/* The server */

static unsigned char payload[1 << 20];
static struct held {
	int n;
	struct nbd_request h;
} held[4 * DEPTH];
static int nheld;

static void many_answer(const int *fd)
{
	struct nbd_reply reply = { .magic = htobe32(NBD_REPLY_MAGIC) };
	struct held *h;

	while (nheld) {
		h = &held[--nheld];
		reply.cookie = h->h.cookie;
		write_full(fd[h->n], &reply, sizeof(reply));
		if ((be32toh(h->h.type) & 0xffff) == NBD_CMD_READ)
			write_full(fd[h->n], payload, be32toh(h->h.len));
	}
}

/* False: this connection is over. */
static bool many_read(struct many_shared *sh, int n, int fd)
{
	struct held *h = &held[nheld];

	if (!read_full(fd, &h->h, sizeof(h->h)))
		return false;
	if ((be32toh(h->h.type) & 0xffff) == NBD_CMD_DISC) {
		sh->disc[n] = 1;
		return false;
	}
	h->n = n;
	nheld++;
	sh->requests[n]++;
	sh->all++;
	return true;
}

static void many_serve(struct many_shared *sh, int *fd)
{
	struct nbd_reply wrong = { .magic = htobe32(0x12560953) };
	struct pollfd p[CONNECTIONS];
	int i, open = CONNECTIONS;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (open) {
		for (i = 0; i < CONNECTIONS; i++)
			p[i] = (struct pollfd) { .fd = fd[i], .events = POLLIN };
		if (poll(p, CONNECTIONS, 5) < 0)
			break;
		for (i = 0; i < CONNECTIONS; i++) {
			if (fd[i] >= 0 && sh->break_it[i] == 1) {
				sh->break_it[i] = 2;
				write_full(fd[i], &wrong, sizeof(wrong));
			}
			if (fd[i] < 0 || !p[i].revents || nheld == ARRAY_SIZE(held) ||
			    many_read(sh, i, fd[i]))
				continue;
			sh->eof[i] = 1;
			close(fd[i]);
			fd[i] = -1;
			open--;
		}
		if (!sh->hold)
			many_answer(fd);
	}
	_exit(0);
}

/* So many reads at once, by way of one CPU's queue. */
static void many_reads(struct _test_data_many *self, int cpu, int count, size_t len)
{
	struct iocb iocb[DEPTH], *list[DEPTH];
	struct io_event event[DEPTH];
	struct many_shared *sh = self->sh;
	aio_context_t aio = 0;
	unsigned char *buf;
	cpu_set_t set;
	int fd, i;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
	fd = open(self->dev.path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (fd < 0 || syscall(SYS_io_setup, DEPTH, &aio) ||
	    posix_memalign((void **)&buf, 4096, count * len))
		_exit(1);
	for (i = 0; i < count; i++) {
		iocb[i] = (struct iocb) {
			.aio_lio_opcode = IOCB_CMD_PREAD,
			.aio_fildes = fd,
			.aio_buf = (uintptr_t)(buf + i * len),
			.aio_nbytes = len,
			/* Not adjacent, so that they are not merged. */
			.aio_offset = (cpu * DEPTH + i) * 2 * len,
		};
		list[i] = &iocb[i];
	}
	if (syscall(SYS_io_submit, aio, count, list) != count ||
	    syscall(SYS_io_getevents, aio, count, count, event, NULL) != count)
		_exit(1);
	for (i = 0; i < count; i++)
		sh->io_errors += event[i].res != (long long)len;
	sh->io_done += count;
	_exit(0);
}

static int many_connect(struct _test_data_many *self, bool netlink)
{
	struct nl_msg m;
	int i, fd, ret;

	if (!netlink) {
		ret = agent_start(&self->a, self->dev.path);
		if (!ret)
			ret = agent_open(&self->a);
		for (i = 0; i < CONNECTIONS && !ret; i++) {
			fd = self->fd[i];
			self->fd[i] = -1;
			ret = agent_set_sock(&self->a, &fd);
		}
		if (!ret)
			ret = agent_ioctl(&self->a, NBD_SET_SIZE, MANY_SIZE);
		if (!ret)
			ret = agent_ioctl(&self->a, NBD_SET_FLAGS, MULTI_CONN);
		if (!ret)
			self->do_it = agent_do_it(&self->a);
		return ret;
	}
	nl_begin(&m, NBD_CMD_CONNECT, self->dev.index);
	nl_u64(&m, NBD_ATTR_SIZE_BYTES, MANY_SIZE);
	nl_u64(&m, NBD_ATTR_SERVER_FLAGS, MULTI_CONN);
	nl_socks(&m, self->fd, CONNECTIONS);
	ret = nl_wait(nl_start(&m), 2 * BOUNDED)->ret;
	for (i = 0; i < CONNECTIONS; i++) {
		close(self->fd[i]);
		self->fd[i] = -1;
	}
	return ret;
}

FIXTURE_SETUP(many)
{
	struct rlimit files = { 4 * CONNECTIONS, 4 * CONNECTIONS };
	const char *why = nbd_pick(&self->dev);
	char nodes[64];
	pid_t pid;
	int i;

	if (why)
		SKIP(return, "%s", why);
	if (read_file("/sys/devices/system/node/online", nodes, sizeof(nodes)) > 0)
		printf("# memory nodes: %s", nodes);
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &files));
	self->sh = shared_memory(sizeof(*self->sh));
	ASSERT_NE(NULL, self->sh);
	for (i = 0; i < CONNECTIONS; i++) {
		int pair[2];

		ASSERT_EQ(0, make_pair(KIND_UNIX, pair));
		self->fd[i] = pair[0];
		self->peer[i] = pair[1];
	}
	pid = fork_quiet();
	if (!pid) {
		for (i = 0; i < CONNECTIONS; i++)
			close(self->fd[i]);
		many_serve(self->sh, self->peer);
	}
	for (i = 0; i < CONNECTIONS; i++)
		close(self->peer[i]);
	ASSERT_EQ(0, many_connect(self, variant->netlink));
	ASSERT_TRUE(WAIT_UNTIL(nbd_running(&self->dev), 2 * BOUNDED));
}

FIXTURE_TEARDOWN(many)
{
	/* A session that netlink has made outlives its maker. */
	if (variant->netlink)
		nl_disconnect(self->dev.index);
	EXPECT_TRUE(nbd_give_back(&self->dev));
}

static int many_read_block(struct peer_session *s)
{
	static unsigned char buf[4096] __aligned(4096);
	int fd = open(s->dev.path, O_RDONLY | O_DIRECT);

	return fd < 0 || pread(fd, buf, 4096, MANY_SIZE / 2) != 4096;
}

/*
 * Two CPUs have so many reads each in flight at once. Returns how many connections of each have
 * any, and in *most how many one connection has.
 */
static int many_in_flight(struct __test_metadata *_metadata, struct _test_data_many *self,
			  int count, size_t len, int *most)
{
	struct peer_session s = { .dev = self->dev };
	int cpus = sysconf(_SC_NPROCESSORS_ONLN) < 2 ? 1 : 2, i, used = 0, before[CONNECTIONS], all;
	struct many_shared *sh = self->sh;

	/* The first opener has the partition table read. */
	ASSERT_EQ(0, other_wait(other_run(&s, many_read_block), BOUNDED));
	all = sh->all + cpus * count;
	for (i = 0; i < CONNECTIONS; i++)
		before[i] = sh->requests[i];
	sh->hold = 1;
	for (i = 0; i < cpus; i++)
		if (!fork_quiet())
			many_reads(self, i, count, len);
	EXPECT_TRUE(WAIT_UNTIL(sh->all >= all, 2 * BOUNDED))
		TH_LOG("%d of %d requests are missing", all - sh->all, cpus * count);
	*most = 0;
	for (i = 0; i < CONNECTIONS; i++) {
		int n = sh->requests[i] - before[i];

		used += n > 0;
		if (n > *most)
			*most = n;
	}
	report_count(used, "connections used at once");
	sh->hold = 0;
	EXPECT_TRUE(WAIT_UNTIL(sh->io_done == cpus * count, 2 * BOUNDED))
		TH_LOG("%d of %d requests have ended", sh->io_done, cpus * count);
	EXPECT_EQ(0, sh->io_errors);
	return used / cpus;
}

/* What is in flight on all of them at once is answered. */
TEST_F_TIMEOUT(many, every_request_is_answered, 120)
{
	int most;

	many_in_flight(_metadata, self, DEPTH, LONG, &most);
}

/* A server works on some requests of a connection, so that these need no other one. */
TEST_F_TIMEOUT(many, short_requests_fill_one_after_the_other, 120)
{
	int most;

	EXPECT_EQ(4, many_in_flight(_metadata, self, 4 * AT_ONCE, 4096, &most));
	EXPECT_EQ(AT_ONCE, most);
}

/* A long payload keeps its connection. */
TEST_F_TIMEOUT(many, long_reads_have_one_each, 120)
{
	int most;

	EXPECT_EQ(AT_ONCE, many_in_flight(_metadata, self, AT_ONCE, LONG, &most));
	EXPECT_EQ(1, most);
}

/* Each connection has a receiver: what is no reply costs just this one, and at once. */
TEST_F_TIMEOUT(many, every_receiver_runs, 120)
{
	struct peer_session s = { .dev = self->dev };
	struct many_shared *sh = self->sh;
	int i, deaf = 0;

	for (i = 0; i < CONNECTIONS - 1; i++) {
		sh->break_it[i] = 1;
		if (!WAIT_UNTIL(sh->eof[i], SOON)) {
			/* It would be the same with the others. */
			if (++deaf > 3)
				break;
			TH_LOG("connection %d has no receiver", i);
		}
	}
	EXPECT_EQ(0, deaf);
	EXPECT_FALSE(sh->eof[CONNECTIONS - 1]);
	EXPECT_EQ(0, other_wait(other_run(&s, many_read_block), BOUNDED));
}

/* Kernel workers that wait in a call of a socket. */
static int waiting_workers(void)
{
	char path[300], comm[64], wchan[64];
	struct dirent *entry;
	int n = 0;
	DIR *proc;

	proc = opendir("/proc");
	while (proc && (entry = readdir(proc))) {
		snprintf(path, sizeof(path), "/proc/%s/comm", entry->d_name);
		if (read_file(path, comm, sizeof(comm)) <= 0 || strncmp(comm, "kworker/", 8))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/wchan", entry->d_name);
		n += read_file(path, wchan, sizeof(wchan)) > 0 && strstr(wchan, "unix_stream");
	}
	if (proc)
		closedir(proc);
	return n;
}

/* While nothing comes, no worker is kept that others may need. */
TEST_F_TIMEOUT(many, no_worker_waits_for_an_idle_server, 120)
{
	struct peer_session s = { .dev = self->dev };

	ASSERT_EQ(0, other_wait(other_run(&s, many_read_block), BOUNDED));
	EXPECT_TRUE(WAIT_UNTIL(!waiting_workers(), SOON))
		TH_LOG("%d workers wait", waiting_workers());
}

static bool all_told(_Atomic int *told)
{
	int i;

	for (i = 0; i < CONNECTIONS && told[i]; i++)
		;
	return i == CONNECTIONS;
}

/* And the end takes no longer for many than for one. */
TEST_F_TIMEOUT(many, every_server_is_told_of_the_end, 120)
{
	struct peer_session s = { .dev = self->dev };
	struct many_shared *sh = self->sh;
	int ret;

	if (scaled(1) > 1)
		SKIP(return, "a second is too short for so many on a slow kernel");

	ret = variant->netlink ? nl_disconnect(self->dev.index) :
	      other_wait(other_ioctl(&s, NBD_DISCONNECT), BOUNDED);
	EXPECT_EQ(0, ret);
	EXPECT_TRUE(WAIT_UNTIL(all_told(sh->eof), SOON));
	EXPECT_TRUE(all_told(sh->disc));
	if (!variant->netlink)
		EXPECT_EQ(0, agent_wait(&self->a, self->do_it, BOUNDED));
}

TEST_HARNESS_MAIN
