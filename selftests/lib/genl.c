// SPDX-License-Identifier: GPL-2.0
/*
 * Netlink messages: how they are made, sent, and understood.
 */
#include "nbd_genl.h"

static void *nl_tail(struct nl_msg *m)
{
	return m->buf + NLMSG_ALIGN(m->h.nlmsg_len);
}

struct nlattr *nl_put(struct nl_msg *m, int type, const void *data, size_t len)
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

void nl_u32(struct nl_msg *m, int type, uint32_t v)
{
	nl_put(m, type, &v, sizeof(v));
}

void nl_u64(struct nl_msg *m, int type, uint64_t v)
{
	nl_put(m, type, &v, sizeof(v));
}

void nl_str(struct nl_msg *m, int type, const char *s)
{
	nl_put(m, type, s, strlen(s) + 1);
}

struct nlattr *nl_nest(struct nl_msg *m, int type)
{
	return nl_put(m, type | NLA_F_NESTED, NULL, 0);
}

void nl_nest_end(struct nl_msg *m, struct nlattr *nest)
{
	nest->nla_len = (char *)nl_tail(m) - (char *)nest;
}

void nl_socks(struct nl_msg *m, const int *fd, int n)
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

/* Changes of connections: a socket for each number, or -1 to remove it. */
void nl_conns(struct nl_msg *m, const int *index, const int *fd, int n)
{
	struct nlattr *list = nl_nest(m, NBD_ATTR_SOCKETS), *item;
	int i;

	for (i = 0; i < n; i++) {
		item = nl_nest(m, NBD_SOCK_ITEM);
		if (fd[i] >= 0)
			nl_u32(m, NBD_SOCK_FD, fd[i]);
		nl_u32(m, NBD_SOCK_INDEX, index[i]);
		nl_nest_end(m, item);
	}
	nl_nest_end(m, list);
}

/* Begin a request; what it is about follows. index < 0: none. */
void nl_begin(struct nl_msg *m, int cmd, int index)
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
static struct nlattr *nl_at(void *p, const void *end)
{
	struct nlattr *a = p;

	if ((char *)p + NLA_HDRLEN > (const char *)end || a->nla_len < NLA_HDRLEN ||
	    (char *)p + a->nla_len > (const char *)end)
		return NULL;
	return a;
}

static void *nl_after(struct nlattr *a)
{
	return (char *)a + NLA_ALIGN(a->nla_len);
}

static void *nl_end(struct nlattr *a)
{
	return (char *)a + a->nla_len;
}

/* Where in the request this attribute is, or 0 if it is not there. */
unsigned int nl_offset(struct nl_msg *m, int type)
{
	char *end = m->buf + m->h.nlmsg_len;
	struct nlattr *a;

	for (a = nl_at(m->buf + NLMSG_HDRLEN + GENL_HDRLEN, end); a; a = nl_at(nl_after(a), end))
		if (NL_TYPE(a) == type)
			return (char *)a - m->buf;
	return 0;
}

/* Where the descriptor number n of nl_socks() is. */
unsigned int nl_sock_offset(struct nl_msg *m, int n)
{
	int item = NLA_HDRLEN + NLA_HDRLEN + sizeof(uint32_t);

	return nl_offset(m, NBD_ATTR_SOCKETS) + NLA_HDRLEN + n * item + NLA_HDRLEN;
}

static uint32_t nl_get_u32(const struct nlattr *a)
{
	uint32_t v = 0;

	if (a->nla_len >= NLA_HDRLEN + sizeof(v))
		memcpy(&v, (const char *)a + NLA_HDRLEN, sizeof(v));
	return v;
}

static long long nl_get_u64(const struct nlattr *a)
{
	long long v = -1;

	if (a->nla_len >= NLA_HDRLEN + sizeof(v))
		memcpy(&v, (const char *)a + NLA_HDRLEN, sizeof(v));
	return v;
}

/* A number of 4 or of 8 bytes. */
static long long nl_number(const struct nlattr *a)
{
	return a->nla_len == NLA_HDRLEN + sizeof(uint32_t) ? nl_get_u32(a) : nl_get_u64(a);
}

static void nl_take_conn(struct nl_answer *r, struct nlattr *conn)
{
	struct nl_conn *c = &r->conn[r->nconns];
	struct nlattr *a;
	int i;

	if (r->nconns == NL_MAX_CONNS)
		return;
	r->nconns++;
	for (i = 0; i < NL_CONN_END; i++)
		c->value[i] = -1;
	for (a = nl_at(NL_DATA(conn), nl_end(conn)); a; a = nl_at(nl_after(a), nl_end(conn))) {
		if (NL_TYPE(a) == NL_CONN_LOCAL_ADDRESS)
			snprintf(c->local, sizeof(c->local), "%s", (char *)NL_DATA(a));
		else if (NL_TYPE(a) == NL_CONN_PEER_ADDRESS)
			snprintf(c->peer, sizeof(c->peer), "%s", (char *)NL_DATA(a));
		else if (NL_TYPE(a) == NL_CONN_ADDED_BY_COMM)
			snprintf(c->comm, sizeof(c->comm), "%s", (char *)NL_DATA(a));
		else if (NL_TYPE(a) == NL_CONN_LAST_ERROR)
			snprintf(c->error, sizeof(c->error), "%s", (char *)NL_DATA(a));
		else if (NL_TYPE(a) < NL_CONN_END)
			c->value[NL_TYPE(a)] = nl_number(a);
	}
}

static void nl_take_session(struct nl_answer *r, struct nlattr *session)
{
	struct nlattr *a;
	int i;

	r->has_session = true;
	for (i = 0; i < NL_SESSION_CONNECTION; i++)
		r->session[i] = -1;
	for (a = nl_at(NL_DATA(session), nl_end(session)); a;
	     a = nl_at(nl_after(a), nl_end(session))) {
		if (NL_TYPE(a) == NL_SESSION_CONNECTION)
			nl_take_conn(r, a);
		else if (NL_TYPE(a) < NL_SESSION_CONNECTION)
			r->session[NL_TYPE(a)] = nl_number(a);
	}
}

static void nl_take_devices(struct nl_answer *r, struct nlattr *list)
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

void nl_take_error(struct nl_answer *r, struct nlmsghdr *h)
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
bool nl_take(struct nl_answer *r, void *buf, ssize_t n)
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
			else if (NL_TYPE(a) == NBD_ATTR_SESSION)
				nl_take_session(r, a);
			else if (NL_TYPE(a) == NBD_ATTR_BACKEND_IDENTIFIER)
				snprintf(r->backend, sizeof(r->backend), "%s", (char *)NL_DATA(a));
			else if (NL_TYPE(a) < NBD_ATTR_END_REASON)
				r->param[NL_TYPE(a)] = nl_get_u64(a);
		}
		r->bytes = h->nlmsg_len;
	}
	return false;
}

/* Send a request and take what comes until its acknowledgment. */
int nl_exchange(int fd, int family, struct nl_msg *m, struct nl_answer *r)
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
int genl_open(struct genl *g)
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
int genl_listen(struct genl *g)
{
	int ret = genl_open(g);

	if (ret)
		return ret;
	if (setsockopt(g->fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &g->group, sizeof(g->group)))
		return -errno;
	return 0;
}

/* The next notification's command, with its index, or -1 if there is none within this time. */
int genl_event(struct genl *g, int ms, int *index)
{
	int value;

	return genl_event_of(g, ms, index, 0, &value);
}

/* The same with one more attribute, or -1 if it is absent. */
int genl_event_of(struct genl *g, int ms, int *index, int attr, int *value)
{
	struct pollfd p = { .fd = g->fd, .events = POLLIN };
	char buf[4096] __aligned(8);
	struct nlmsghdr *h = (void *)buf;
	struct nlattr *a;
	ssize_t n;

	*index = -1;
	*value = -1;
	if (poll(&p, 1, ms) != 1)
		return -1;
	n = recv(g->fd, buf, sizeof(buf), 0);
	if (n < (ssize_t)(NLMSG_HDRLEN + GENL_HDRLEN) || h->nlmsg_type != g->family)
		return 0;
	for (a = nl_at((char *)NLMSG_DATA(h) + GENL_HDRLEN, buf + n); a;
	     a = nl_at(nl_after(a), buf + n)) {
		if (NL_TYPE(a) == NBD_ATTR_INDEX)
			*index = nl_get_u32(a);
		else if (attr && NL_TYPE(a) == attr)
			*value = nl_get_u32(a);
	}
	return ((struct genlmsghdr *)NLMSG_DATA(h))->cmd;
}
