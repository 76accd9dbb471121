/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Sessions that are made by netlink, with the servers of nbd_peer.h.
 */
#ifndef NBD_NLPEER_H
#define NBD_NLPEER_H

#include "nbd_peer.h"
#include "nbd_genl.h"

#define NL_BLKSIZE	4096
#define NL_SECTORS	((long long)(PEER_SIZE / 512))
#define NL_FLAGS	(NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA)

struct nl_session {
	struct peer_session s;		/* without a client */
	uint64_t dead;			/* dead_conn_timeout */
	uint64_t cflags;		/* NBD_CFLAG_* */
	const char *backend;
	struct nl_answer answer;	/* of the last request */
};

int nl_peer(struct peer_session *s, int n);
void nl_close_ends(struct peer_session *s);
void nl_begin_connect(struct nl_msg *m, struct nl_session *ns, int index, int *fd, int nfds);
int nl_finish(struct nl_session *ns, struct nl_msg *m);
const char *nl_init(struct nl_session *ns, int npeers, enum peer_kind kind);
void nl_use(struct nl_session *ns, int index);
int nl_peers(struct nl_session *ns);
int nl_connect_peers(struct nl_session *ns);
int nl_connect(struct nl_session *ns);
int nl_connect_and_keep(struct nl_session *ns, int *kept);
int nl_reconnect_as(struct nl_session *ns, int n, enum peer_kind kind);
int nl_reconnect(struct nl_session *ns, int n);
int nl_change(struct nl_session *ns, int type, uint64_t v);
bool nl_kill_peer(struct peer_session *s, int n);
bool nl_cleanup(struct nl_session *ns);
int read_all(struct peer_session *s);
int nl_read_other_by(struct peer_session *s, int fd);
int nl_read_other(struct peer_session *s);
int nl_sleepers(int *pid, int max);
int nl_stuck(const int *before, int nbefore, int ms);

int uevents(void);
int uevent(int fd, const char *action);
bool uevent_of(int fd, const char *action, struct nbd_dev *d);
bool uevent_with(int fd, const char *action, struct nbd_dev *d, const char *variable);

#endif /* NBD_NLPEER_H */
