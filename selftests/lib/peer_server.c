// SPDX-License-Identifier: GPL-2.0
/*
 * The servers of a session, good ones and those that misbehave.
 */
#include "nbd_peer.h"

struct peer_request {
	uint32_t type, len;
	uint64_t cookie, from;		/* the cookie as it came; the offset in the data */
};

struct peer_state {
	struct peer_shared *sh;
	int n, fd;
	struct peer_request held[1024];
	int nheld;
};

bool read_full(int fd, void *buf, size_t len)
{
	while (len) {
		ssize_t n = read(fd, buf, len);

		if (n <= 0)
			return false;
		buf += n;
		len -= n;
	}
	return true;
}

bool write_full(int fd, const void *buf, size_t len)
{
	while (len) {
		ssize_t n = send(fd, buf, len, MSG_NOSIGNAL);

		if (n <= 0)
			return false;
		buf += n;
		len -= n;
	}
	return true;
}

/* Move the data of a request, in pieces if the peer is slow. */
static bool peer_data(struct peer_state *p, struct peer_request *r, bool in)
{
	unsigned char *data = p->sh->data + r->from;
	size_t left = r->len, n;

	for (; left; left -= n, data += n) {
		n = p->sh->slow_ms && left > 65536 ? 65536 : left;
		if (p->sh->slow_ms)
			usleep(p->sh->slow_ms * 1000);
		if (in ? !read_full(p->fd, data, n) : !write_full(p->fd, data, n))
			return false;
	}
	return true;
}

static bool peer_reply(struct peer_state *p, struct peer_request *r)
{
	struct nbd_reply reply = { .magic = htobe32(NBD_REPLY_MAGIC), .cookie = r->cookie };

	reply.error = htobe32(p->sh->error);
	return write_full(p->fd, &reply, sizeof(reply)) &&
	       (reply.error || r->type != NBD_CMD_READ || peer_data(p, r, false));
}

/* Read one request and, at once, the payload of a write; false at the end of the connection. */
static bool peer_read(struct peer_state *p)
{
	struct peer_request *r = &p->held[p->nheld];
	struct nbd_request h;

	if (!read_full(p->fd, &h, sizeof(h)) || be32toh(h.magic) != NBD_REQUEST_MAGIC)
		return false;
	r->type = be32toh(h.type);
	r->len = be32toh(h.len);
	r->from = be64toh(h.from) % PEER_SIZE;
	r->cookie = h.cookie;
	if ((r->type & 0xffff) == NBD_CMD_DISC) {
		p->sh->disc_at[p->n] = now_ms();
		p->sh->disc[p->n]++;
		return false;
	}
	if ((r->type & 0xffff) < NBD_CMD_DISC && r->len > PEER_SIZE - r->from)
		return false;
	if ((r->type & 0xffff) == NBD_CMD_WRITE && !peer_data(p, r, true))
		return false;
	p->nheld++;
	p->sh->requests[p->n]++;
	p->sh->held_reads[p->n] += r->type == NBD_CMD_READ;
	p->sh->held[p->n] = p->nheld;
	return true;
}

static bool peer_flush(struct peer_state *p)
{
	bool ok = true;

	while (ok && p->nheld) {
		if (p->sh->kind[p->n] == PEER_SHUFFLE) {
			int i = random() % p->nheld;
			struct peer_request r = p->held[i];

			p->held[i] = p->held[p->nheld - 1];
			p->held[p->nheld - 1] = r;
		}
		ok = peer_reply(p, &p->held[--p->nheld]);
		p->sh->held_reads[p->n] -= p->held[p->nheld].type == NBD_CMD_READ;
		p->sh->held[p->n] = p->nheld;
	}
	return ok;
}

/*
 * The driver has given the connection up. Once it is told to, answer what is left, with other data,
 * so that it can be seen if the driver takes it.
 */
static void peer_answer_late(struct peer_state *p)
{
	int i;

	while (!p->sh->go[p->n] && !p->sh->close[p->n])
		usleep(2000);
	for (i = 0; i < p->nheld; i++)
		p->held[i].from ^= HOLDER_CHUNK;
	peer_flush(p);
	p->sh->acted[p->n] = 1;
}

/* Answer a request with an error. What is refused is not written, either. */
static void peer_refuse(struct peer_state *p, int i, uint32_t error)
{
	struct nbd_reply reply = { .magic = htobe32(NBD_REPLY_MAGIC), .error = htobe32(error) };
	struct peer_request r = p->held[i];

	reply.cookie = r.cookie;
	if (p->sh->kind[p->n] == PEER_LEAVES_COOKIE)
		reply.cookie ^= htobe64(0x5a5a5a5a00000000ULL);
	else
		p->held[i] = p->held[--p->nheld];
	if (error == ESHUTDOWN && r.type == NBD_CMD_WRITE)
		memset(p->sh->data + r.from, 0xee, r.len);
	p->sh->held_reads[p->n] -= r.type == NBD_CMD_READ;
	p->sh->held[p->n] = p->nheld;
	if (error == ESHUTDOWN) {
		if (!p->sh->refused_at[p->n])
			p->sh->refused_at[p->n] = now_ms();
		p->sh->refused[p->n]++;
	}
	write_full(p->fd, &reply, sizeof(reply));
}

/* It has read nothing yet, and reads a single request, to have one that it can refuse. */
static void peer_refuse_deaf(struct peer_state *p)
{
	struct nbd_request h;

	if (p->sh->acted[p->n] || !read_full(p->fd, &h, sizeof(h)))
		return;
	p->held[p->nheld++] = (struct peer_request) { .cookie = h.cookie };
	peer_refuse(p, 0, ESHUTDOWN);
	p->sh->acted[p->n] = 1;
}

/* Half of an answer to a read. */
static void peer_half(struct peer_state *p)
{
	struct nbd_reply reply = { .magic = htobe32(NBD_REPLY_MAGIC) };
	int i;

	for (i = 0; i < p->nheld && p->held[i].type != NBD_CMD_READ; i++)
		;
	if (i == p->nheld)
		return;
	reply.cookie = p->held[i].cookie;
	write_full(p->fd, &reply, sizeof(reply));
	write_full(p->fd, p->sh->data + p->held[i].from, p->held[i].len / 2);
}

/* The server goes away; false: it has. */
static bool peer_leave(struct peer_state *p, int go)
{
	enum peer_kind kind = p->sh->kind[p->n];
	int i, acted = p->sh->acted[p->n];
	bool ok = true;

	if (!acted && p->nheld) {
		/* What will never be answered has not been written. */
		for (i = 0; kind != PEER_LEAVES && i < p->nheld; i++)
			if (p->held[i].type == NBD_CMD_WRITE)
				memset(p->sh->data + p->held[i].from, 0xee, p->held[i].len);
		peer_refuse(p, 0, ESHUTDOWN);
		p->sh->acted[p->n] = 1;
		acted = 1;
	}
	if (!acted || kind == PEER_LEAVES_CLOSE)
		return !acted;
	if (go < 2 && kind != PEER_LEAVES_ALL)
		return true;
	if (acted == 1) {
		if (kind == PEER_LEAVES)
			ok = peer_flush(p);
		else if (kind == PEER_LEAVES_EIO)
			while (p->nheld)
				peer_refuse(p, 0, EIO);
		else if (kind == PEER_LEAVES_HALF)
			peer_half(p);
		p->sh->acted[p->n] = 2;
	}
	while (p->nheld && kind <= PEER_LEAVES_ALL)
		peer_refuse(p, 0, ESHUTDOWN);
	return ok;
}

/* It was told to disconnect. The stream has to end then, with nothing else in it. */
static void peer_disconnected(struct peer_state *p)
{
	char c;

	p->sh->left[p->n] = recv(p->fd, &c, 1, 0) > 0 ? -1 : 1;
}

/* It was told to disconnect, and takes its time for that. */
static void peer_stay(struct peer_state *p)
{
	while (!p->sh->go[p->n] && !p->sh->close[p->n])
		usleep(2000);
	peer_flush(p);
	p->sh->acted[p->n] = 1;
	while (!p->sh->close[p->n])
		usleep(2000);
}

/* Do to one request what this kind of peer does; false: close. */
static bool peer_misbehave(struct peer_state *p)
{
	struct nbd_reply reply = { .magic = htobe32(NBD_REPLY_MAGIC) };
	struct peer_request *r = &p->held[0];
	enum peer_kind kind = p->sh->kind[p->n];
	int i;

	for (i = 0; i < p->nheld; i++)
		if (p->held[i].type == NBD_CMD_READ)
			r = &p->held[i];
	reply.cookie = r->cookie;
	switch (kind) {
	case PEER_HALF_HEADER:
	case PEER_CLOSE_HEADER:
		write_full(p->fd, &reply, sizeof(reply) / 2);
		return kind == PEER_HALF_HEADER;
	case PEER_HALF_PAYLOAD:
	case PEER_CLOSE_PAYLOAD:
		write_full(p->fd, &reply, sizeof(reply));
		write_full(p->fd, p->sh->data + r->from, r->len / 2);
		return kind == PEER_HALF_PAYLOAD;
	case PEER_BAD_MAGIC:
		reply.magic = htobe32(0x12560953);
		break;
	case PEER_BAD_COOKIE:
		reply.cookie ^= htobe64(0x5a5a5a5a00000000ULL);
		break;
	case PEER_TWICE:
		write_full(p->fd, &reply, sizeof(reply));
		write_full(p->fd, p->sh->data + r->from, r->type == NBD_CMD_READ ? r->len : 0);
		break;
	default:
		return true;
	}
	write_full(p->fd, &reply, sizeof(reply));
	return true;
}

void peer_main(struct peer_shared *sh, int n, int fd)
{
	static struct peer_state state;
	struct peer_state *p = &state;
	struct pollfd pfd = { .fd = fd };
	bool more = true;

	*p = (struct peer_state) { .sh = sh, .n = n, .fd = fd };
	srandom(n + 1);
	while (more && !sh->close[n]) {
		bool away = sh->kind[n] == PEER_AWAY;
		bool deaf = away || sh->kind[n] == PEER_DEAF || sh->kind[n] == PEER_LEAVES_DEAF;
		int unread = 0, go;
		enum peer_kind kind;

		sh->deaf[n] = deaf;
		pfd.events = away ? 0 : POLLRDHUP | (deaf ? 0 : POLLIN);
		if (poll(&pfd, 1, 2) < 0)
			break;
		if (!ioctl(fd, FIONREAD, &unread) && unread != sh->unread[n]) {
			sh->unread_since[n] = now_ms();
			sh->unread[n] = unread;
		}
		if (deaf) {
			if (sh->go[n] && sh->kind[n] == PEER_LEAVES_DEAF)
				peer_refuse_deaf(p);
			more = sh->kind[n] == PEER_AWAY ||
			       !(pfd.revents & (POLLRDHUP | POLLHUP | POLLERR));
			if (!more)
				sh->eof[n] = 1;
			continue;
		}
		if (pfd.revents & (POLLIN | POLLRDHUP | POLLHUP | POLLERR)) {
			more = peer_read(p);
			if (!more) {
				if (sh->kind[n] >= PEER_LEAVES && sh->disc[n])
					peer_disconnected(p);
				sh->eof[n] = 1;
				if (sh->kind[n] == PEER_LATE)
					peer_answer_late(p);
				if (sh->kind[n] == PEER_PATIENT && sh->disc[n])
					peer_stay(p);
				break;
			}
		}
		/* In this order: the test has set the kind before it lets the server go. */
		go = sh->go[n];
		kind = sh->kind[n];
		switch (kind) {
		case PEER_GOOD:
			more = peer_flush(p);
			break;
		case PEER_HELD:
		case PEER_LATE:
		case PEER_PATIENT:
			if (go)
				more = peer_flush(p);
			break;
		case PEER_SHUFFLE:
			/*
			 * Answer when nothing more comes, or when enough has come to be shuffled.
			 */
			if (!(pfd.revents & POLLIN) || p->nheld >= 64)
				more = peer_flush(p);
			break;
		case PEER_LEAVES:
		case PEER_LEAVES_EIO:
		case PEER_LEAVES_ALL:
		case PEER_LEAVES_MUTE:
		case PEER_LEAVES_HALF:
		case PEER_LEAVES_CLOSE:
		case PEER_LEAVES_COOKIE:
			if (go)
				more = peer_leave(p, go);
			break;
		default:
			if (go && !sh->acted[n] && p->nheld) {
				more = peer_misbehave(p);
				sh->acted[n] = 1;
			}
			break;
		}
		/* A server that never answers still takes in all that comes. */
		if (p->nheld == 1024)
			p->nheld = 1;
	}
	close(fd);
	_exit(0);
}
