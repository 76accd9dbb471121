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
#include <pthread.h>
#include <sched.h>

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

static inline void *nl_tail(struct nl_msg *m)
{
	return m->buf + NLMSG_ALIGN(m->h.nlmsg_len);
}

static inline struct nlattr *nl_put(struct nl_msg *m, int type, const void *data, size_t len)
{
	struct nlattr *a = nl_tail(m);

	a->nla_type = type;
	a->nla_len = NLA_HDRLEN + len;
	memset(a + 1, 0, NLA_ALIGN(len));
	if (len)
		memcpy(a + 1, data, len);
	m->h.nlmsg_len = NLMSG_ALIGN(m->h.nlmsg_len) + NLA_ALIGN(a->nla_len);
	return a;
}

static inline void nl_u32(struct nl_msg *m, int type, uint32_t v)
{
	nl_put(m, type, &v, sizeof(v));
}

static inline void nl_u64(struct nl_msg *m, int type, uint64_t v)
{
	nl_put(m, type, &v, sizeof(v));
}

static inline void nl_str(struct nl_msg *m, int type, const char *s)
{
	nl_put(m, type, s, strlen(s) + 1);
}

static inline struct nlattr *nl_nest(struct nl_msg *m, int type)
{
	return nl_put(m, type | NLA_F_NESTED, NULL, 0);
}

static inline void nl_nest_end(struct nl_msg *m, struct nlattr *nest)
{
	nest->nla_len = (char *)nl_tail(m) - (char *)nest;
}

static inline void nl_socks(struct nl_msg *m, const int *fd, int n)
{
	struct nlattr *list = nl_nest(m, NBD_ATTR_SOCKETS), *item;
	int i;

	for (i = 0; i < n; i++) {
		item = nl_nest(m, NBD_SOCK_ITEM);
		nl_u32(m, NBD_SOCK_FD, fd[i]);
		nl_nest_end(m, item);
	}
	nl_nest_end(m, list);
}

/* Begin a request; what it is about follows. index < 0: none. */
static inline void nl_begin(struct nl_msg *m, int cmd, int index)
{
	struct genlmsghdr *g = (void *)(m->buf + NLMSG_HDRLEN);

	m->thread = false;
	m->before = NULL;
	memset(m->buf, 0, NLMSG_HDRLEN + GENL_HDRLEN);
	m->h.nlmsg_len = NLMSG_HDRLEN + GENL_HDRLEN;
	m->h.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
	g->cmd = cmd;
	g->version = NBD_GENL_VERSION;
	if (index >= 0)
		nl_u32(m, NBD_ATTR_INDEX, index);
}

/* The attribute at this place if there is a whole one before the end, else NULL. */
static inline struct nlattr *nl_at(void *p, const void *end)
{
	struct nlattr *a = p;

	if ((char *)p + NLA_HDRLEN > (const char *)end || a->nla_len < NLA_HDRLEN ||
	    (char *)p + a->nla_len > (const char *)end)
		return NULL;
	return a;
}

static inline void *nl_after(struct nlattr *a)
{
	return (char *)a + NLA_ALIGN(a->nla_len);
}

#define NL_TYPE(a)	((a)->nla_type & NLA_TYPE_MASK)
#define NL_DATA(a)	((void *)((char *)(a) + NLA_HDRLEN))

static inline void *nl_end(struct nlattr *a)
{
	return (char *)a + a->nla_len;
}

/* Where in the request this attribute is, or 0 if it is not there. */
static inline unsigned int nl_offset(struct nl_msg *m, int type)
{
	char *end = m->buf + m->h.nlmsg_len;
	struct nlattr *a;

	for (a = nl_at(m->buf + NLMSG_HDRLEN + GENL_HDRLEN, end); a; a = nl_at(nl_after(a), end))
		if (NL_TYPE(a) == type)
			return (char *)a - m->buf;
	return 0;
}

/* Where the descriptor number n of nl_socks() is. */
static inline unsigned int nl_sock_offset(struct nl_msg *m, int n)
{
	int item = NLA_HDRLEN + NLA_HDRLEN + sizeof(uint32_t);

	return nl_offset(m, NBD_ATTR_SOCKETS) + NLA_HDRLEN + n * item + NLA_HDRLEN;
}

static inline uint32_t nl_get_u32(const struct nlattr *a)
{
	uint32_t v = 0;

	if (a->nla_len >= NLA_HDRLEN + sizeof(v))
		memcpy(&v, (const char *)a + NLA_HDRLEN, sizeof(v));
	return v;
}

static inline void nl_take_devices(struct nl_answer *r, struct nlattr *list)
{
	struct nlattr *item, *a;

	for (item = nl_at(NL_DATA(list), nl_end(list)); item;
	     item = nl_at(nl_after(item), nl_end(list))) {
		if (NL_TYPE(item) != NBD_DEVICE_ITEM || r->ndevs == NL_MAX_DEVS)
			continue;
		r->dev[r->ndevs].index = -1;
		r->dev[r->ndevs].connected = -1;
		for (a = nl_at(NL_DATA(item), nl_end(item)); a;
		     a = nl_at(nl_after(a), nl_end(item))) {
			if (NL_TYPE(a) == NBD_DEVICE_INDEX)
				r->dev[r->ndevs].index = nl_get_u32(a);
			else if (NL_TYPE(a) == NBD_DEVICE_CONNECTED)
				r->dev[r->ndevs].connected = *(uint8_t *)NL_DATA(a);
		}
		r->ndevs++;
	}
}

static inline void nl_take_error(struct nl_answer *r, struct nlmsghdr *h)
{
	struct nlmsgerr *e = NLMSG_DATA(h);
	size_t skip = sizeof(*e);
	struct nlattr *a;

	r->ret = e->error;
	if (!(h->nlmsg_flags & NLM_F_ACK_TLVS))
		return;
	if (!(h->nlmsg_flags & NLM_F_CAPPED))
		skip += NLMSG_ALIGN(e->msg.nlmsg_len) - sizeof(e->msg);
	for (a = nl_at((char *)e + skip, (char *)h + h->nlmsg_len); a;
	     a = nl_at(nl_after(a), (char *)h + h->nlmsg_len)) {
		if (NL_TYPE(a) == NLMSGERR_ATTR_MSG)
			snprintf(r->text, sizeof(r->text), "%.*s", (int)(a->nla_len - NLA_HDRLEN),
				 (char *)NL_DATA(a));
		else if (NL_TYPE(a) == NLMSGERR_ATTR_MISS_TYPE)
			r->missing = nl_get_u32(a);
		else if (NL_TYPE(a) == NLMSGERR_ATTR_OFFS)
			r->offset = nl_get_u32(a);
	}
}

/* Take what came; true if the acknowledgment was in it. */
static inline bool nl_take(struct nl_answer *r, void *buf, ssize_t n)
{
	struct nlmsghdr *h;
	struct nlattr *a;

	for (h = buf; NLMSG_OK(h, n); h = NLMSG_NEXT(h, n)) {
		char *end = (char *)h + h->nlmsg_len;

		if (h->nlmsg_type == NLMSG_ERROR) {
			nl_take_error(r, h);
			return true;
		}
		for (a = nl_at((char *)NLMSG_DATA(h) + GENL_HDRLEN, end); a;
		     a = nl_at(nl_after(a), end)) {
			if (NL_TYPE(a) == NBD_ATTR_INDEX)
				r->index = nl_get_u32(a);
			else if (NL_TYPE(a) == NBD_ATTR_DEVICE_LIST)
				nl_take_devices(r, a);
		}
	}
	return false;
}

/* Send a request and take what comes until its acknowledgment. */
static inline int nl_exchange(int fd, int family, struct nl_msg *m, struct nl_answer *r)
{
	static char buf[1 << 17];
	ssize_t n;

	m->h.nlmsg_type = family;
	m->h.nlmsg_seq++;
	r->index = -1;
	if (send(fd, m->buf, m->h.nlmsg_len, 0) != (ssize_t)m->h.nlmsg_len)
		return r->ret = -errno;
	while ((n = recv(fd, buf, sizeof(buf), 0)) > 0)
		if (nl_take(r, buf, n))
			return r->ret;
	return r->ret = n < 0 ? -errno : -EPIPE;
}

/* Open a generic netlink socket and find the family and its group; 0 or -errno. */
static inline int genl_open(struct genl *g)
{
	static char buf[8192];
	struct genlmsghdr *gh;
	struct nlattr *a, *b, *c;
	struct nlmsghdr *h = (void *)buf;
	struct nl_msg m;
	int one = 1;
	ssize_t n;

	g->family = -ENOENT;
	g->group = -1;
	g->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
	if (g->fd < 0)
		return -errno;
	setsockopt(g->fd, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof(one));
	setsockopt(g->fd, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof(one));
	nl_begin(&m, CTRL_CMD_GETFAMILY, -1);
	m.h.nlmsg_type = GENL_ID_CTRL;
	m.h.nlmsg_flags = NLM_F_REQUEST;
	gh = (void *)(m.buf + NLMSG_HDRLEN);
	gh->version = 1;
	nl_str(&m, CTRL_ATTR_FAMILY_NAME, NBD_GENL_FAMILY_NAME);
	if (send(g->fd, m.buf, m.h.nlmsg_len, 0) < 0)
		return -errno;
	n = recv(g->fd, buf, sizeof(buf), 0);
	if (n < (ssize_t)(NLMSG_HDRLEN + GENL_HDRLEN))
		return -EIO;
	if (h->nlmsg_type == NLMSG_ERROR)
		return ((struct nlmsgerr *)NLMSG_DATA(h))->error;
	for (a = nl_at((char *)NLMSG_DATA(h) + GENL_HDRLEN, buf + n); a;
	     a = nl_at(nl_after(a), buf + n)) {
		if (NL_TYPE(a) == CTRL_ATTR_FAMILY_ID)
			g->family = *(uint16_t *)NL_DATA(a);
		if (NL_TYPE(a) != CTRL_ATTR_MCAST_GROUPS)
			continue;
		for (b = nl_at(NL_DATA(a), nl_end(a)); b;
		     b = nl_at(nl_after(b), nl_end(a))) {
			for (c = nl_at(NL_DATA(b), nl_end(b)); c;
			     c = nl_at(nl_after(c), nl_end(b))) {
				if (NL_TYPE(c) == CTRL_ATTR_MCAST_GRP_ID)
					g->group = nl_get_u32(c);
			}
		}
	}
	return g->family < 0 ? g->family : 0;
}

/* Listen to the family's group; 0 or -errno. */
static inline int genl_listen(struct genl *g)
{
	int ret = genl_open(g);

	if (ret)
		return ret;
	if (setsockopt(g->fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &g->group, sizeof(g->group)))
		return -errno;
	return 0;
}

/* The next notification's command, with its index, or -1 if there is none within this time. */
static inline int genl_event(struct genl *g, int ms, int *index)
{
	struct pollfd p = { .fd = g->fd, .events = POLLIN };
	char buf[4096] __aligned(8);
	struct nlmsghdr *h = (void *)buf;
	struct nlattr *a;
	ssize_t n;

	*index = -1;
	if (poll(&p, 1, ms) != 1)
		return -1;
	n = recv(g->fd, buf, sizeof(buf), 0);
	if (n < (ssize_t)(NLMSG_HDRLEN + GENL_HDRLEN) || h->nlmsg_type != g->family)
		return 0;
	for (a = nl_at((char *)NLMSG_DATA(h) + GENL_HDRLEN, buf + n); a;
	     a = nl_at(nl_after(a), buf + n)) {
		if (NL_TYPE(a) == NBD_ATTR_INDEX)
			*index = nl_get_u32(a);
	}
	return ((struct genlmsghdr *)NLMSG_DATA(h))->cmd;
}

#ifndef NBD_GENL_CLIENT

/* A request on its way. */
struct nl_call {
	pid_t pid;
	struct nl_answer *answer;
};

static inline void *nl_send(void *arg)
{
	struct nl_call *c = arg;
	struct nl_msg *m = (void *)(c + 1);
	struct genl g;
	int ret;

	c->answer->tid = syscall(SYS_gettid);
	c->answer->index = -1;
	ret = m->before ? m->before() : 0;
	if (!ret)
		ret = genl_open(&g);
	if (ret)
		c->answer->ret = ret;
	else
		nl_exchange(g.fd, g.family, m, c->answer);
	__atomic_store_n(&c->answer->done, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

/* Send a request from a new process. */
static inline struct nl_call nl_start(struct nl_msg *m)
{
	struct nl_call c = {};

	c.answer = shared_memory(sizeof(*c.answer));
	if (!c.answer)
		exit(1);
	fflush(NULL);
	c.pid = fork();
	if (!c.pid) {
		struct {
			struct nl_call c;
			struct nl_msg m;
		} *arg = malloc(sizeof(*arg));
		int null = open("/dev/null", O_RDWR | O_CLOEXEC);
		pthread_t t;

		/* One that is stuck must not hold a pipe of the test's open. */
		dup2(null, 0);
		dup2(null, 1);
		dup2(null, 2);
		arg->c = c;
		arg->m = *m;
		if (!m->thread)
			nl_send(arg);
		else if (!pthread_create(&t, NULL, nl_send, arg))
			pthread_join(t, NULL);
		_exit(0);
	}
	return c;
}

/*
 * Its answer, which is overwritten by the next one; ret is -ETIME if there is none in time, and
 * the process is left behind.
 */
static inline struct nl_answer *nl_wait(struct nl_call c, int ms)
{
	static struct nl_answer last;
	bool ok = WAIT_UNTIL(__atomic_load_n(&c.answer->done, __ATOMIC_SEQ_CST) || exited(c.pid),
			     ms);

	last = *c.answer;
	if (!ok)
		last.ret = -ETIME;
	else if (!last.done)
		last.ret = -EPIPE;
	if (!ok || !reap(c.pid, 1000))
		nbd_child(c.pid);
	munmap(c.answer, sizeof(*c.answer));
	return &last;
}

static inline struct nl_answer *nl_do(struct nl_msg *m)
{
	return nl_wait(nl_start(m), BOUNDED);
}

/* A request that has nothing but an index. */
static inline struct nl_answer *nl_simple(int cmd, int index)
{
	struct nl_msg m;

	nl_begin(&m, cmd, index);
	return nl_do(&m);
}

static inline int nl_disconnect(int index)
{
	return nl_simple(NBD_CMD_DISCONNECT, index)->ret;
}

/* What STATUS says of one device: 0, 1, -ENODEV if it is not in the list, or another error. */
static inline int nl_connected(int index)
{
	struct nl_answer *r = nl_simple(NBD_CMD_STATUS, index);

	if (r->ret)
		return r->ret;
	if (r->ndevs != 1 || r->dev[0].index != index)
		return -ENODEV;
	return r->dev[0].connected;
}

/* How many notifications of this link's death there are within this time, or at once if ms is 0. */
static inline int nl_deaths(struct genl *g, int index, int ms)
{
	long long end = now_ms() + ms, left;
	int n = 0, cmd, i;

	do {
		left = end - now_ms();
		cmd = genl_event(g, left > 0 ? left : 0, &i);
		if (cmd == NBD_CMD_LINK_DEAD && i == index)
			n++;
	} while (cmd >= 0);
	return n;
}

#endif /* NBD_GENL_CLIENT */

#endif /* NBD_GENL_H */
