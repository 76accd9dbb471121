/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The netlink interface, for tests. Each request is sent by a process of its own, as a program
 * would, and with a deadline: a driver that hangs fails one test.
 */
#ifndef NBD_GENL_H
#define NBD_GENL_H

#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <linux/netlink.h>

#include "nbd_test.h"

#ifndef SOL_NETLINK
#define SOL_NETLINK	270
#endif

/* What Documentation/netlink/specs/nbd.yaml has and an older uapi header lacks. */
#define NBD_ATTR_FIRST_CONNECTION	11
#define NBD_ATTR_SESSION		12
#define NBD_ATTR_CONNECTION_INDEX	13
#define NBD_ATTR_END_REASON		14
#define NBD_SOCK_INDEX			2
#define NBD_CMD_LINK_UP			6
#define NBD_CMD_SESSION_END		7

enum {
	NL_SESSION_STATE = 1,
	NL_SESSION_ORIGIN,
	NL_SESSION_PID,
	NL_SESSION_AGE_MS,
	NL_SESSION_CONNECTIONS,
	NL_SESSION_CONNECTION,
};

enum {
	NL_CONN_INDEX = 1,
	NL_CONN_STATE,
	NL_CONN_GENERATION,
	NL_CONN_LOCAL_ADDRESS,
	NL_CONN_PEER_ADDRESS,
	NL_CONN_ADDED_BY_PID,
	NL_CONN_ADDED_BY_COMM,
	NL_CONN_REQUESTS,
	NL_CONN_IN_FLIGHT,
	NL_CONN_DRAINING,
	NL_CONN_REPLAYED,
	NL_CONN_SENT_BYTES,
	NL_CONN_RECEIVED_BYTES,
	NL_CONN_LAST_ERROR,
	NL_CONN_AGE_MS,
	NL_CONN_END,
};

enum { NL_LIVE, NL_WAITING, NL_DEAD, NL_DISCONNECTING, NL_ENDING };
enum { NL_BY_IOCTL, NL_BY_NETLINK };
enum { NL_VACANT, NL_OPEN, NL_DRAINING, NL_CLOSING };
enum { NL_LINKS_FAILED, NL_TIMED_OUT, NL_SHUTTING_DOWN, NL_REQUESTED, NL_INTERRUPTED };

#define NL_MAX_DEVS	2048
#define NL_MAX_CONNS	64

/* What STATUS says of a connection: numbers by their attribute, -1 if it is absent. */
struct nl_conn {
	long long value[NL_CONN_END];
	char local[128], peer[128], comm[32], error[128];
};

/* An answer, with all that the kernel says about an error. */
struct nl_answer {
	int done;
	int ret;		/* 0 or -errno */
	int tid;		/* of the thread that has asked */
	int missing;		/* the attribute that the kernel says is missing, or 0 */
	unsigned int offset;	/* in the request, of the one that it says is wrong, or 0 */
	int index;		/* of the reply, or -1 */
	int ndevs;		/* of STATUS */
	struct {
		int index, connected;
	} dev[NL_MAX_DEVS];
	char text[256];		/* what the kernel says is wrong, or empty */
	size_t bytes;		/* of the last reply */
	bool has_session;	/* of STATUS with NBD_ATTR_FIRST_CONNECTION */
	long long param[NBD_ATTR_END_REASON];
	char backend[64];
	long long session[NL_SESSION_CONNECTION];
	int nconns;
	struct nl_conn conn[NL_MAX_CONNS];
};

/* A request. */
struct nl_msg {
	union {
		struct nlmsghdr h;
		char buf[16384];
	};
	bool thread;		/* sent from another thread than the first */
	int (*before)(void);	/* run in the process that sends it, before it opens its socket */
};

struct genl {
	int fd, family, group;
};

struct nlattr *nl_put(struct nl_msg *m, int type, const void *data, size_t len);
void nl_u32(struct nl_msg *m, int type, uint32_t v);
void nl_u64(struct nl_msg *m, int type, uint64_t v);
void nl_str(struct nl_msg *m, int type, const char *s);
struct nlattr *nl_nest(struct nl_msg *m, int type);
void nl_nest_end(struct nl_msg *m, struct nlattr *nest);
void nl_socks(struct nl_msg *m, const int *fd, int n);
void nl_conns(struct nl_msg *m, const int *index, const int *fd, int n);
void nl_begin(struct nl_msg *m, int cmd, int index);

#define NL_TYPE(a)	((a)->nla_type & NLA_TYPE_MASK)
#define NL_DATA(a)	((void *)((char *)(a) + NLA_HDRLEN))

unsigned int nl_offset(struct nl_msg *m, int type);
unsigned int nl_sock_offset(struct nl_msg *m, int n);
void nl_take_error(struct nl_answer *r, struct nlmsghdr *h);
bool nl_take(struct nl_answer *r, void *buf, ssize_t n);
int nl_exchange(int fd, int family, struct nl_msg *m, struct nl_answer *r);
int genl_open(struct genl *g);
int genl_listen(struct genl *g);
int genl_event(struct genl *g, int ms, int *index);
int genl_event_of(struct genl *g, int ms, int *index, int attr, int *value);

/* A request on its way. */
struct nl_call {
	pid_t pid;
	struct nl_answer *answer;
};

struct nl_call nl_start(struct nl_msg *m);
struct nl_answer *nl_wait(struct nl_call c, int ms);
struct nl_answer *nl_do(struct nl_msg *m);
struct nl_answer *nl_simple(int cmd, int index);
int nl_disconnect(int index);
int nl_connected(int index);
struct nl_answer *nl_status(int index, int first);
long long nl_conn(int index, int connection, int attr);
bool nl_event(struct genl *g, int index, int cmd, int attr, int value);
int nl_link_dead(struct genl *g, int index, int ms);

#endif /* NBD_GENL_H */
