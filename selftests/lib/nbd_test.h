/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What all programs share. The test itself never touches the device: it tells agents
 * (helper_agent, a process each) what to do and waits for their answer with a deadline, so that
 * a driver that hangs fails one test and leaves one stuck agent and one device that is not used
 * again.
 */
#ifndef NBD_TEST_H
#define NBD_TEST_H

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/nbd.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/*
 * The harness has 30 s for a test, too little for some on a debug kernel. What hangs is found by
 * the deadlines in the tests, which are scaled.
 */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	150

#ifndef __maybe_unused
#define __maybe_unused __attribute__((__unused__))
#endif
#ifndef __noreturn
#define __noreturn __attribute__((__noreturn__))
#endif
#ifndef __aligned
#define __aligned(x) __attribute__((__aligned__(x)))
#endif
#ifndef ARRAY_SIZE
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#endif

#define NBD_DEVICES	64
#define NBD_MARKS	"/run/nbd-selftest"
#define AGENT_CTL	3
#define AGENT_SLOTS	16
/* Where agent_take() puts a descriptor that only passes through. */
#define AGENT_TMP	(AGENT_SLOTS - 1)

/* Deadlines in milliseconds: for what must be at once, and for what must not hang. */
#define SOON		1000
#define BOUNDED		4000

enum agent_op {
	AGENT_OPEN,		/* arg: open flags */
	AGENT_CLOSE,
	AGENT_TAKE,		/* put the descriptor that comes along into the slot */
	AGENT_DUP,		/* from slot arg2 into the slot; arg: its number, or 0 */
	AGENT_FD,		/* the number of the slot's descriptor */
	AGENT_IOCTL,		/* arg: request, arg2: argument */
	AGENT_IOCTL_FD,		/* arg: request, arg2: slot whose descriptor is the argument */
	AGENT_READ,		/* arg: offset, arg2: length */
	AGENT_WRITE,
	AGENT_AIO_SUBMIT,	/* arg: number of reads of 4 KiB */
	AGENT_AIO_WAIT,		/* arg: number, arg2: ms; aux: how many of them ended with EIO */
	AGENT_FORK,		/* the child serves the descriptor that comes along; ret: pid */
	AGENT_EXEC,		/* keeps slot 0 */
	AGENT_LEADER_EXIT,	/* the first thread ends, another one serves on */
	AGENT_DROP_CAPS,
	AGENT_CPU,		/* arg: run on this CPU only */
	AGENT_ROUNDS,		/* case B, arg times; arg2: kind; aux: rounds without EOF */
	AGENT_EXIT,
};

#define AGENT_THREAD	1	/* in another thread */
#define AGENT_ASYNC	2	/* in another thread, while others are served */

/* The same layout for 32 and 64 bits. */
struct agent_msg {
	uint32_t op, seq, slot, flags;
	uint64_t arg, arg2;
};

struct agent_reply {
	uint32_t seq, pad;
	int64_t ret, aux;
};

struct nbd_ioctl {
	unsigned long cmd;
	const char *name;
};

/* All ioctls of the driver, and one that it does not have. */
extern const struct nbd_ioctl nbd_ioctls[12];

enum sock_kind { KIND_UNIX, KIND_TCP, KIND_TCP6 };

long long now_ms(void);
int scaled(int ms);
long scaled_down(long n);
ssize_t read_file(const char *path, char *text, size_t len);
bool write_file(const char *path, const char *text);
void *shared_memory(size_t size);
void report_count(long n, const char *what);

/*
 * A virtual machine may stand still for seconds, and the driver in it: a wait consists of naps of
 * NAP_MS, of which none counts for more than NAP_MOST_MS.
 */
#define NAP_MS		10
#define NAP_MOST_MS	100

int nap(struct pollfd *p, int n, int ms, long long *left);
int poll_while(struct pollfd *p, int n, long long *left);
int poll_for(struct pollfd *p, int n, int ms);

#define WAIT_UNTIL(cond, ms) ({						\
	long long __left = scaled(ms), __start;				\
	bool __ok;							\
	for (;;) {							\
		__start = now_ms();					\
		__ok = (cond);						\
		if (__ok || __left <= 0)				\
			break;						\
		__left -= now_ms() - __start;				\
		nap(NULL, 0, 2, &__left);				\
	}								\
	__ok;								\
})

int make_pair(enum sock_kind kind, int fd[2]);
bool saw_eof(int fd, int ms);
bool no_eof(int fd);
int send_msg(int ctl, const void *msg, size_t len, int fd);
int sockmap_new(int n);
int sockmap_add(int map, uint32_t place, int fd);

/* Processes */

int count_sockets(void);
void nbd_child(pid_t pid);
void nbd_child_gone(pid_t pid);
void nbd_children_forget(void);
bool nbd_children_end(void);
pid_t fork_quiet(void);
bool exited(pid_t pid);
bool reap(pid_t pid, int ms);
char proc_state(pid_t pid);
bool somebody_in(const char *function, const char *outer);
const char *nbd_dir(void);

/* Agents */

struct agent {
	pid_t pid;
	int ctl;
	uint32_t seq;
	struct agent_reply early[4];	/* of asynchronous calls */
	int64_t aux;			/* of the last answer */
};

int agent_start_as(struct agent *a, const char *path, const char *program);
int agent_start(struct agent *a, const char *path);
uint32_t agent_send(struct agent *a, enum agent_op op, int flags, int slot, uint64_t arg,
		    uint64_t arg2, int fd);
long agent_wait(struct agent *a, uint32_t seq, int ms);
long agent_call(struct agent *a, enum agent_op op, int flags, int slot, uint64_t arg,
		uint64_t arg2);
long agent_open_as(struct agent *a, int slot, int flags);
long agent_open(struct agent *a);
void udev_settle(void);
long agent_close(struct agent *a);
long agent_ioctl(struct agent *a, unsigned long cmd, unsigned long arg);
long agent_take(struct agent *a, int slot, int *fd);
long agent_set_sock_as(struct agent *a, int *fd, int flags);
long agent_set_sock(struct agent *a, int *fd);
long agent_set_new_sock(struct agent *a);
uint32_t agent_do_it(struct agent *a);
long agent_read(struct agent *a, uint64_t off, uint64_t len);
bool agent_kill(struct agent *a);
long agent_fork(struct agent *a, struct agent *child);

/* Toy servers */

enum toy_mode {
	TOY_OBEDIENT,		/* answers, and closes when it is told to disconnect */
	TOY_MUTE,		/* reads everything, answers nothing */
};

struct toy {
	pid_t pid;
	int fd;			/* the test's own descriptor of the peer, for saw_eof() */
	int *requests;		/* how many it has read */
};

int toy_start(struct toy *t, int fd, enum toy_mode mode);
int toy_requests(struct toy *t);
void toy_hang_up(struct toy *t);
void toy_kill(struct toy *t);

/* Devices */

struct nbd_dev {
	int index;
	char path[32];
};

bool nbd_sys_exists(struct nbd_dev *d, const char *name);
long long nbd_sys(struct nbd_dev *d, const char *name);
const char *nbd_sys_text(struct nbd_dev *d, const char *name);
bool nbd_running(struct nbd_dev *d);
bool nbd_is_rust(void);
bool nbd_idle(struct nbd_dev *d);
const char *nbd_pick(struct nbd_dev *d);
bool nbd_give_back(struct nbd_dev *d);

/* The kernel's log */

int log_open(void);
const char *log_next(int log);
bool logged(int log, struct nbd_dev *d, const char *const words[]);

/* Sessions */

#define SESSION_SIZE	(1LL << 20)
#define MULTI_CONN	(NBD_FLAG_HAS_FLAGS | NBD_FLAG_CAN_MULTI_CONN)

struct session {
	struct nbd_dev *dev;
	struct agent client;
	struct toy toy;
	uint32_t do_it;
};

long session_setup(struct session *s, struct nbd_dev *d, enum sock_kind kind, enum toy_mode mode);
long session_run(struct session *s);
long session_start(struct session *s, struct nbd_dev *d, enum sock_kind kind, enum toy_mode mode);
long session_result(struct session *s);
long session_stop(struct session *s);

#endif /* NBD_TEST_H */
