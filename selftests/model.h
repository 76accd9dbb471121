/* SPDX-License-Identifier: GPL-2.0 */
/*
 * fuzz_model: users and servers, which act, the model, which knows what must come of that, and the
 * steps that are taken.
 */
#ifndef MODEL_H
#define MODEL_H

#include <pthread.h>

#include "nbd_fuzz.h"

#define DEVS		4
#define USERS		6
#define FILES		24
#define SOCKS		256
#define PENDING		8
#define FILE_FD		100		/* file n is descriptor 100 + n of all users of it */
#define USER_CTL	3
#define BLOCK		4096UL

/* Users */

enum user_op { USER_OPEN, USER_CLOSE, USER_IOCTL, USER_SOCK, USER_READ, USER_WRITE, USER_DO_IT,
	       USER_PENDING, USER_FORK };

struct user_call {
	int op, file, slot;
	unsigned long arg;
	char path[32];
};

/* What goes on in a thread of a user. */
struct user_thread {
	atomic_int done, tid;
	atomic_long ret;
};

struct user_shared {
	unsigned char data[BLOCK];	/* what was read last; aligned for direct reads */
	struct user_thread do_it[DEVS], pending[PENDING];
};

extern struct user_shared *shared;

struct user {
	pid_t pid;			/* 0: there is none */
	int ctl, pidfd;
};

extern struct user users[USERS];

long user_ask(struct user *u, struct user_call *c, int fd);
bool user_start(struct user *u, struct user *parent);
bool user_kill(struct user *u);

/* Servers */

enum sock_state {
	SOCK_FREE,
	SOCK_NEW,		/* on its way to the driver */
	SOCK_KEPT,		/* the driver must keep it */
	SOCK_DROPPED,		/* the driver must have closed it a second after that */
};

struct sock {
	int fd;
	enum sock_state state;
	int dev;
	bool mute;		/* requests are not read */
	unsigned char stamp;	/* what all data of the session are */
};

extern struct sock socks[SOCKS];
extern pthread_mutex_t socks_lock;

/* Since when the step goes on, until it was said where it is stuck. */
extern atomic_llong step_since;
/* How long it may take, in milliseconds. */
extern int step_limit;

bool socks_init(void);
struct sock *sock_new(int dev, enum sock_kind kind, unsigned char stamp, int *fd);
void sock_close(struct sock *s);
void sock_mute(struct sock *s, bool mute);

#define MIB		(1ULL << 20)
/* Seconds: a timeout that does not come in a test. */
#define NEVER		600

/* Steps */

struct step {
	uint8_t op, user, dev;
	uint32_t arg;
};

enum { LEFT_OUT, TAKEN };

struct op {
	const char *name;
	int weight;
	int (*take)(struct step *s);
};

/* What was seen of what is rare, for the test to print. */
enum {
	SAW_IOCTL, SAW_NETLINK, SAW_DEAD, SAW_PENDING, SAW_FORKS, SAW_KILLS, SAW_REMOVED,
	SAW_TIMEOUTS, SAW_GIVEN_UP, SAW_MAX
};

/* The model */

enum mstate { IDLE, SETUP, RUNNING, STOPPED, ABSENT };

struct mparams {
	uint64_t size;
	unsigned int block;
	bool multi;
	unsigned int dead, client;
};

struct mdev {
	struct nbd_dev dev;
	enum mstate state;
	struct mparams params;
	int owner;			/* of the setup, or of NBD_DO_IT; -1: it is dead */
	int run_file;			/* NBD_DO_IT was called on it */
	bool netlink, mute;
	bool given_up;			/* no connection has come in time */
	int conns, alive;
	int pid;
	uint64_t shown;			/* of a stopped device, or 0 */
	unsigned char stamp, old_stamp;
	bool was_cached;		/* there may be data of the ended session left to read */
};

struct mfile {
	unsigned int users;		/* a bit each */
	int dev;
	bool direct;
};

struct mpending {
	bool busy;
	int user, dev;
};

extern struct mdev devs[DEVS];
extern struct mfile files[FILES];
extern struct mpending pending[PENDING];
extern struct genl genl, link_dead;
extern const struct mparams defaults;

/*
 * The model is wrong, for the test to see that this is noticed: for it, a device can be set up
 * again while others of the ended session have it open.
 */
extern bool wrong_model;

int openers(int d);
int file_of(struct step *s);
bool is_pending(int d);
bool skip(struct step *s, unsigned int n);
int bad_fd(unsigned int kind, int *error);
bool io_flows(struct mdev *m);
void want(long got, long expected, const char *what);
int kept_socks(int d, struct sock **own);
void mute(int d, bool on);
void to_idle(int d, struct mparams params);
void ended(int d);
void end_session(int d);
void want_do_it(int d, long ret);
void end_on_request(int d);
void drop_file(int f, int user);
void session_starts(int d, bool netlink);

/* What is seen */

extern int debugfs;

int status_of(int d);
void see_status(int d);
void see_pending(void);
void see(void);

/* What users do */

int take_spawn(struct step *s);
int take_fork(struct step *s);
int take_kill(struct step *s);
int take_open(struct step *s);
int take_close(struct step *s);
int take_set_sock(struct step *s);
int take_clear_sock(struct step *s);
int take_disconnect(struct step *s);
int take_do_it(struct step *s);
int take_signal(struct step *s);
int take_set(struct step *s);
int take_read(struct step *s);
int take_write(struct step *s);
int take_pending(struct step *s);

/* What servers do */

int take_mute(struct step *s);
int take_server_dies(struct step *s);

/* What takes time */

int take_timeout(struct step *s);
int take_give_up(struct step *s);

/* Netlink messages */

int nl_index(int d);
int new_socks(int d, int n, enum sock_kind kind, int *fd, struct sock **sock);
void connected(int d, struct mparams p, struct sock **sock, int n);
void nl_params(struct nl_msg *msg, const struct mparams *p);
int take_nl_connect(struct step *s);
int take_nl_connect_any(struct step *s);
int take_nl_disconnect(struct step *s);
int take_nl_reconfigure(struct step *s);
int take_nl_status(struct step *s);
int take_nl_place(struct step *s);

#endif /* MODEL_H */
