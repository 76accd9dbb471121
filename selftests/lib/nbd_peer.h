/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A session with servers that misbehave: the client (the task in NBD_DO_IT), the servers, and a
 * holder with I/O in flight are processes of their own, so that whatever hangs, hangs there, and
 * the test can say so in bounded time. What they find they leave in shared memory.
 */
#ifndef NBD_PEER_H
#define NBD_PEER_H

#include <stdatomic.h>

#include "nbd_test.h"

#define PEER_SIZE	(16UL << 20)
#define PEER_MAX	4
#define HOLDER_THREADS	8
#define HOLDER_CHUNK	(256UL << 10)
#define HOLDER_END_MS	2000

enum peer_kind {
	PEER_GOOD,		/* answers everything at once */
	PEER_HELD,		/* answers everything, but not before it is told to */
	PEER_LATE,		/* the same, and with other data once the connection has ended */
	PEER_PATIENT,		/* the same, after it was told to disconnect, too; never closes */
	PEER_SHUFFLE,		/* answers a batch of requests in random order */
	PEER_DEAF,		/* reads nothing */
	PEER_AWAY,		/* the same, and does not notice the connection's end, either */
	PEER_MUTE,		/* reads everything, answers nothing */
	PEER_HALF_HEADER,	/* half a reply header, then nothing */
	PEER_HALF_PAYLOAD,	/* a header and half of the payload, then nothing */
	PEER_CLOSE_HEADER,	/* half a reply header, then close */
	PEER_CLOSE_PAYLOAD,	/* a header and half of the payload, then close */
	PEER_BAD_MAGIC,		/* a reply with the wrong magic */
	PEER_BAD_COOKIE,	/* a reply to a request that was never sent */
	PEER_TWICE,		/* two replies to one request, then nothing */
	/*
	 * These say to one request that they shut down, if "go" is 1. What is left they answer, if
	 * it is 2, and keep their end open until they see the driver's.
	 */
	PEER_LEAVES,		/* well; refuses what comes then */
	PEER_LEAVES_EIO,	/* with EIO */
	PEER_LEAVES_ALL,	/* all with the same words, as nbdkit does */
	PEER_LEAVES_MUTE,	/* not at all */
	PEER_LEAVES_HALF,	/* one of the reads with half of its payload */
	PEER_LEAVES_DEAF,	/* not at all, and reads nothing more */
	PEER_LEAVES_CLOSE,	/* closes at once */
	PEER_LEAVES_COOKIE,	/* says so to a request that was never sent */
};

enum client_stop {
	CLIENT_WAIT,
	CLIENT_CLEAR,		/* CLEAR_SOCK, for a driver that left requests behind, and exit */
	CLIENT_EXIT,		/* exit only */
	CLIENT_CLOSE,		/* close the device and wait to be told to exit */
	CLIENT_AGAIN,		/* another session, with a server that does nothing */
};

/*
 * What the processes of one session tell each other. Times are in milliseconds of the monotonic
 * clock.
 */
struct peer_shared {
	_Atomic int kind[PEER_MAX];	/* enum peer_kind; may change while it runs */
	_Atomic int deaf[PEER_MAX];	/* it has stopped reading */
	_Atomic int go[PEER_MAX];	/* the peer may answer, or misbehave */
	_Atomic int close[PEER_MAX];	/* the peer is to close its socket */
	_Atomic int requests[PEER_MAX];	/* whole requests that it has read */
	_Atomic int held[PEER_MAX];	/* of those, not answered yet */
	_Atomic int held_reads[PEER_MAX];	/* and of those, reads */
	_Atomic int unread[PEER_MAX];	/* bytes in its socket, and since when */
	_Atomic long long unread_since[PEER_MAX];
	_Atomic int acted[PEER_MAX];	/* it has misbehaved */
	_Atomic int eof[PEER_MAX];	/* it saw the connection's end */
	_Atomic int disc[PEER_MAX];	/* and before that, so many NBD_CMD_DISC */
	_Atomic int left[PEER_MAX];	/* after that the stream has ended, as it must */
	_Atomic int refused[PEER_MAX];	/* requests that were told that it shuts down */
	_Atomic long long refused_at[PEER_MAX];	/* the first of them, and when DISC came */
	_Atomic long long disc_at[PEER_MAX];

	_Atomic int client_stage;	/* 1: set up, in DO_IT; 2: DO_IT has returned */
	_Atomic int client_errno;	/* of the setup or of DO_IT */
	_Atomic int client_stop;	/* what to do after DO_IT, enum client_stop */

	_Atomic int holder_open;
	_Atomic int io_go;		/* the holder may begin */
	_Atomic int write_go;		/* its writers may */
	_Atomic int loop;		/* the holder first does this much verified I/O a thread */
	_Atomic int looped, loop_errors;
	_Atomic int io_started;
	_Atomic int io_done;
	_Atomic int io_errno[HOLDER_THREADS];	/* 0: success, -1: short, -2: wrong data */
	_Atomic int late_done;
	_Atomic int late_bytes;		/* bytes that an I/O after the end has moved */
	_Atomic int holder_stop;

	_Atomic uint32_t error;		/* good peers answer with it, if not 0 */
	_Atomic int slow_ms;		/* what 64 KiB of payload take a peer */
	unsigned char data[PEER_SIZE];	/* of larger devices all that is equal modulo this */
};

struct peer_session {
	struct peer_shared *sh;
	struct nbd_dev dev;
	int npeers;
	enum peer_kind kind;		/* once the holder has opened the device */
	bool tcp;
	unsigned int timeout;		/* NBD_SET_TIMEOUT, 0: not called */
	int lowat;			/* SO_RCVLOWAT of the client's sockets, 0: not set */
	bool hasty;			/* its sockets have timeouts, of nothing */
	bool keep;			/* the test has them open, too */
	bool keep_peers;		/* and the servers' ends */
	int *made;			/* the only connection, if the test has made it */
	void (*serve)(struct peer_session *s, int fd);	/* instead of a server of a kind */
	bool tls;			/* the kernel encrypts what goes over TCP */
	int sa_flags;			/* of the handler that the client has for SIGTERM */
	bool no_handler;		/* it has none */
	int room;			/* in the sockets' buffers, 0: 64 KiB, -1: as it is */
	unsigned long blksize, blocks;	/* 0: PEER_SIZE in blocks of 4096 */
	unsigned long flags;		/* NBD_FLAG_* besides flush and FUA */
	int fd[PEER_MAX];		/* the client's ends */
	int peer_fd[PEER_MAX];		/* the servers' */
	int victim;			/* a connection to which a request was sent whole */
	pid_t peer[PEER_MAX], client, holder;
};

/* The servers */
bool read_full(int fd, void *buf, size_t len);
bool write_full(int fd, const void *buf, size_t len);
void peer_main(struct peer_shared *sh, int n, int fd);

/* The holder */
unsigned char pattern(size_t i);
void holder_main(struct peer_session *s);
int sum(_Atomic int *n);
int in_flight(struct peer_session *s);
int holder_begin(struct peer_session *s);
bool deaf_and_full(struct peer_session *s);
int holder_start(struct peer_session *s);

/* The session */
int peer_prepare(struct peer_session *s, int npeers, enum peer_kind kind);
const char *peer_init(struct peer_session *s, int npeers, enum peer_kind kind);
int peer_encrypt(int fd);
int peer_pair(struct peer_session *s, int pair[2]);
void peer_hasty(struct peer_session *s, int i);
int peer_start(struct peer_session *s);
pid_t other_ioctl(struct peer_session *s, unsigned long cmd);
pid_t other_run(struct peer_session *s, int (*fn)(struct peer_session *s));
int other_wait(pid_t pid, int ms);
int read_block(struct peer_session *s);
bool peer_end(struct peer_session *s);
bool peer_cleanup(struct peer_session *s);
const char *peer_works_again(struct peer_session *s);

#endif /* NBD_PEER_H */
