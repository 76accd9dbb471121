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

#define NL_MAX_DEVS	2048

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
int nl_link_dead(struct genl *g, int index, int ms);

#endif /* NBD_GENL_H */
