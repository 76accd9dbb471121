// SPDX-License-Identifier: GPL-2.0
/*
 * Sessions of an agent with a toy server.
 */
#include "nbd_test.h"

/* A client sets one socket and the parameters up; the session is not started. */
long session_setup(struct session *s, struct nbd_dev *d, enum sock_kind kind, enum toy_mode mode)
{
	int fd[2];
	long ret;

	s->dev = d;
	if (make_pair(kind, fd))
		return -errno;
	ret = toy_start(&s->toy, fd[1], mode);
	if (!ret)
		ret = agent_start(&s->client, d->path);
	if (!ret)
		ret = agent_open(&s->client);
	if (!ret)
		ret = agent_set_sock(&s->client, &fd[0]);
	if (!ret)
		ret = agent_ioctl(&s->client, NBD_SET_BLKSIZE, 1024);
	if (!ret)
		ret = agent_ioctl(&s->client, NBD_SET_SIZE, SESSION_SIZE);
	if (!ret)
		ret = agent_ioctl(&s->client, NBD_SET_FLAGS, NBD_FLAG_HAS_FLAGS);
	return ret;
}

/* NBD_DO_IT; returns when the device is there. */
long session_run(struct session *s)
{
	long ret;

	s->do_it = agent_do_it(&s->client);
	if (WAIT_UNTIL(nbd_running(s->dev), BOUNDED))
		return 0;
	ret = agent_wait(&s->client, s->do_it, 0);
	return ret ?: -EIO;
}

long session_start(struct session *s, struct nbd_dev *d, enum sock_kind kind, enum toy_mode mode)
{
	return session_setup(s, d, kind, mode) ?: session_run(s);
}

/* How NBD_DO_IT has ended. */
long session_result(struct session *s)
{
	return agent_wait(&s->client, s->do_it, BOUNDED);
}

/* End it from the server's side and wait for that. */
long session_stop(struct session *s)
{
	toy_hang_up(&s->toy);
	return session_result(s);
}
