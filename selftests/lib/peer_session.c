// SPDX-License-Identifier: GPL-2.0
/*
 * A session's client, and what the test does with the session.
 */
#include <linux/tls.h>
#include <netinet/tcp.h>

#include "nbd_peer.h"

static void client_signal(int sig __maybe_unused)
{
}

static void client_main(struct peer_session *s)
{
	struct sigaction sa = { .sa_handler = client_signal, .sa_flags = s->sa_flags };
	unsigned long flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA;
	struct peer_shared *sh = s->sh;
	sigset_t blocked;
	int fd, i;

	if (!s->no_handler)
		sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	/* One that is ignored, and one that is blocked. */
	signal(SIGUSR1, SIG_IGN);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR2);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	if (s->npeers > 1)
		flags |= NBD_FLAG_CAN_MULTI_CONN;
	fd = open(s->dev.path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		goto failed;
	for (i = 0; i < s->npeers; i++)
		if (ioctl(fd, NBD_SET_SOCK, s->fd[i]))
			goto failed;
	flags |= s->flags;
	if (ioctl(fd, NBD_SET_BLKSIZE, s->blksize ?: 4096) ||
	    ioctl(fd, NBD_SET_SIZE_BLOCKS, s->blocks ?: PEER_SIZE / 4096) ||
	    ioctl(fd, NBD_SET_FLAGS, flags) ||
	    (s->timeout && ioctl(fd, NBD_SET_TIMEOUT, (unsigned long)s->timeout)))
		goto failed;
	sh->client_stage = 1;
	sh->client_errno = ioctl(fd, NBD_DO_IT) ? errno : 0;
	sh->client_stage = 2;
	while (!sh->client_stop)
		usleep(2000);
	if (sh->client_stop == CLIENT_CLOSE)
		close(fd);
	while (sh->client_stop == CLIENT_CLOSE)
		usleep(2000);
	if (sh->client_stop == CLIENT_AGAIN && !make_pair(KIND_UNIX, s->fd) &&
	    !ioctl(fd, NBD_SET_SOCK, s->fd[0]))
		ioctl(fd, NBD_DO_IT);
	if (sh->client_stop == CLIENT_CLEAR)
		ioctl(fd, NBD_CLEAR_SOCK);
	_exit(0);
failed:
	sh->client_errno = errno;
	sh->client_stage = 2;
	_exit(1);
}

/* Prepare a session with npeers servers that become of one kind. */
int peer_prepare(struct peer_session *s, int npeers, enum peer_kind kind)
{
	/* The pattern's: byte by byte all of it would take its time. */
	size_t period = 1 << 20, i;

	s->npeers = npeers;
	s->kind = kind;
	s->sh = shared_memory(sizeof(*s->sh));
	if (!s->sh)
		return -1;
	for (i = 0; i < period; i++)
		s->sh->data[i] = pattern(i);
	for (i = period; i < PEER_SIZE; i += period)
		memcpy(s->sh->data + i, s->sh->data, period);
	return 0;
}

const char *peer_init(struct peer_session *s, int npeers, enum peer_kind kind)
{
	const char *why;

	memset(s, 0, sizeof(*s));
	why = nbd_pick(&s->dev);
	if (why)
		return why;
	return peer_prepare(s, npeers, kind) ? "no memory" : NULL;
}

/* TLS without a handshake: both ends know the key. */
int peer_encrypt(int fd)
{
	struct tls12_crypto_info_aes_gcm_128 key = {
		.info = {
			.version = TLS_1_3_VERSION,
			.cipher_type = TLS_CIPHER_AES_GCM_128,
		},
		.key = "selftest of nbd",
	};

	if ((setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", sizeof("tls")) && errno != EEXIST) ||
	    setsockopt(fd, SOL_TLS, TLS_TX, &key, sizeof(key)) ||
	    setsockopt(fd, SOL_TLS, TLS_RX, &key, sizeof(key)))
		return -1;
	return 0;
}

/* A connection with buffers that a few requests fill: [0] is for the driver. */
int peer_pair(struct peer_session *s, int pair[2])
{
	int size = s->room ?: 65536, one = 1;

	if (make_pair(s->tcp ? KIND_TCP : KIND_UNIX, pair))
		return -1;
	if (size > 0) {
		setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
		setsockopt(pair[1], SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	}
	if (s->tcp)
		setsockopt(pair[1], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (s->tls && (peer_encrypt(pair[0]) || peer_encrypt(pair[1])))
		return -1;
	return 0;
}

/* Have a socket of the client not wait for anything. */
void peer_hasty(struct peer_session *s, int i)
{
	struct timeval never = { .tv_sec = -1 };

	setsockopt(s->fd[i], SOL_SOCKET, SO_RCVTIMEO, &never, sizeof(never));
	setsockopt(s->fd[i], SOL_SOCKET, SO_SNDTIMEO, &never, sizeof(never));
}

/* Start the servers and the client, and wait until the device is there. */
int peer_start(struct peer_session *s)
{
	int pair[PEER_MAX][2];
	int i, j;

	for (i = 0; i < s->npeers; i++) {
		if (s->made)
			memcpy(pair[i], s->made, sizeof(pair[i]));
		else if (peer_pair(s, pair[i]))
			return -1;
		s->fd[i] = pair[i][0];
		if (s->lowat)
			setsockopt(pair[i][0], SOL_SOCKET, SO_RCVLOWAT, &s->lowat, sizeof(int));
		if (s->hasty)
			peer_hasty(s, i);
	}
	for (i = 0; i < s->npeers; i++) {
		s->peer[i] = fork_quiet();
		if (!s->peer[i]) {
			for (j = 0; j < s->npeers; j++) {
				close(pair[j][0]);
				if (j != i)
					close(pair[j][1]);
			}
			if (s->serve)
				s->serve(s, pair[i][1]);
			peer_main(s->sh, i, pair[i][1]);
		}
	}
	for (i = 0; i < s->npeers; i++) {
		s->peer_fd[i] = pair[i][1];
		if (!s->keep_peers)
			close(pair[i][1]);
	}
	s->client = fork_quiet();
	if (!s->client)
		client_main(s);
	for (i = 0; i < s->npeers && !s->keep; i++)
		close(s->fd[i]);
	if (!WAIT_UNTIL(s->sh->client_stage == 2 || nbd_running(&s->dev), BOUNDED))
		errno = ETIMEDOUT;
	else if (s->sh->client_stage == 2)
		errno = s->sh->client_errno;
	else
		return 0;
	return -1;
}

/* Open the device in another process and do one ioctl there, as nbd-client -d does. */
pid_t other_ioctl(struct peer_session *s, unsigned long cmd)
{
	pid_t pid = fork_quiet();

	if (!pid) {
		int fd = open(s->dev.path, O_RDWR);

		_exit(fd < 0 || ioctl(fd, cmd, 0) ? 1 : 0);
	}
	return pid;
}

/* Let another process do this; its result becomes its exit status. */
pid_t other_run(struct peer_session *s, int (*fn)(struct peer_session *s))
{
	pid_t pid = fork_quiet();

	if (!pid)
		_exit(fn(s));
	return pid;
}

/*
 * The exit status, or -1 if it is killed or does not come in time (the process is left behind).
 */
int other_wait(pid_t pid, int ms)
{
	int status;

	if (!WAIT_UNTIL(exited(pid), ms) || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

/* Read a block and compare it. */
int read_block(struct peer_session *s)
{
	unsigned char buf[4096];
	int fd = open(s->dev.path, O_RDONLY);

	return fd < 0 || pread(fd, buf, 4096, 8192) != 4096 ||
	       memcmp(buf, s->sh->data + 8192, 4096);
}

/* End all processes of the session; false if one does not end. */
bool peer_end(struct peer_session *s)
{
	pid_t all[PEER_MAX + 2];
	bool ok = true;
	int i, n = 0;

	if (!s->sh)
		return true;
	s->sh->holder_stop = 1;
	s->sh->client_stop = CLIENT_CLEAR;
	for (i = 0; i < s->npeers; i++) {
		s->sh->close[i] = 1;
		all[n++] = s->peer[i];
	}
	all[n++] = s->client;
	all[n++] = s->holder;
	for (i = 0; i < n; i++) {
		if (all[i] <= 0)
			continue;
		/* The client is given the chance to clear what is left. */
		if (i < s->npeers || !WAIT_UNTIL(exited(all[i]), 500))
			kill(all[i], SIGKILL);
		ok = reap(all[i], 2000) && ok;
	}
	munmap(s->sh, sizeof(*s->sh));
	s->sh = NULL;
	return ok;
}

bool peer_cleanup(struct peer_session *s)
{
	bool ok = peer_end(s);

	return nbd_give_back(&s->dev) && ok;
}

/*
 * The same device again, with a server that works: connect, read, disconnect. NULL or what is
 * wrong.
 */
const char *peer_works_again(struct peer_session *s)
{
	const char *wrong = NULL;

	if (!peer_end(s))
		return "the old session's processes do not end";
	if (peer_prepare(s, 1, PEER_GOOD))
		return "no memory";
	s->holder = 0;
	s->timeout = 0;
	s->flags = 0;
	if (peer_start(s))
		return strerror(errno);
	if (other_wait(other_run(s, read_block), 2000))
		wrong = "reading";
	else if (other_wait(other_ioctl(s, NBD_DISCONNECT), 2000))
		wrong = "DISCONNECT";
	else if (!WAIT_UNTIL(s->sh->client_stage == 2, 2000))
		wrong = "DO_IT does not return";
	return wrong;
}
