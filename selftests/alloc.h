/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Operations with allocations that fail.
 */
#ifndef ALLOC_H
#define ALLOC_H

#include "nbd_nlpeer.h"

#define FAULT_NTH	"/proc/thread-self/fail-nth"

/* An operation, done by a process of its own. */

struct try {
	struct nl_session *ns;
	const struct operation *op;
	int dev;			/* the open device, or -1 */
	struct genl genl;
	struct nl_msg *msg;
	struct try_shared {
		_Atomic int done;	/* the operation has returned */
		_Atomic int release;	/* the process is to end */
		int ret;		/* 0 or -errno */
		int left;		/* 0: an allocation has failed */
	} *sh;
	pid_t pid;
};

struct operation {
	int (*before)(struct try *t);
	int (*act)(struct try *t);		/* with the failing allocation */
	int (*after)(struct try *t, int ret);
	/* Instead of those three: the message to be sent. */
	void (*message)(struct nl_msg *m, struct nl_session *ns);
	/* What the test does until it has returned: NULL, or what is wrong. */
	const char *(*meanwhile)(struct try *t);
	unsigned long cmd;
	int oflags;
	int npeers;				/* 0: any */
	bool tcp;
	bool stays;				/* its process is there when the test looks */
	bool must;				/* it succeeds in any case */
	int also;				/* an errno besides those that say "no memory" */
};

const char *faults_on(void);
void faults_off(void);
bool can_filter_faults(void);
bool faults_in_module(void);
bool fault_begin(int n);
bool fault_end(void);

int op_open(struct try *t);
int op_close(struct try *t);
int op_close_after(struct try *t, int ret);
int op_ioctl(struct try *t);
int op_set_sock(struct try *t);
int op_set_second_sock(struct try *t);
int op_open_and_set_sock(struct try *t);
int op_setup(struct try *t);
void msg_connect(struct nl_msg *m, struct nl_session *ns);
void msg_reconnect(struct nl_msg *m, struct nl_session *ns);
void msg_resize(struct nl_msg *m, struct nl_session *ns);
void msg_disconnect(struct nl_msg *m, struct nl_session *ns);
int op_read(struct try *t);
int op_write(struct try *t);
void try_start(struct try *t, struct nl_session *ns, const struct operation *op, int n);
int try_result(struct try *t);
bool try_end(struct try *t);
bool is_clean(int ret);

struct tally {
	int tried, fine, error[256];
	long long start;
};

void tally_add(struct tally *t, int ret);
void tally_show(struct tally *t, const char *name, int sites);

#endif /* ALLOC_H */
