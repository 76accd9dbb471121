// SPDX-License-Identifier: GPL-2.0

#include <linux/lockdep.h>
#include <linux/net.h>
#include <linux/sizes.h>
#include <linux/uio.h>
#include <net/af_unix.h>
#include <net/inet_connection_sock.h>
#include <net/sock.h>
#include <net/tcp.h>

__rust_helper bool rust_helper_sock_is_stream(struct socket *sock)
{
	return (sk_is_tcp(sock->sk) || sk_is_stream_unix(sock->sk)) &&
	       sock->ops->shutdown != sock_no_shutdown;
}

/*
 * The locks of a socket that carries block I/O nest inside those of
 * filesystems on the device, and those of ordinary sockets may nest outside
 * (page faults in copies): give them classes of their own.
 */
#ifdef CONFIG_DEBUG_LOCK_ALLOC
static inline void sock_reclassify_block_io(struct sock *sk)
{
	static struct lock_class_key sk_key[3], slock_key[3];

	if (!sock_allow_reclassification(sk))
		return;
#if IS_ENABLED(CONFIG_PROVE_LOCKING) && IS_ENABLED(CONFIG_MODULES)
	/* Once: each time takes a reference to the module, and only one is given back. */
	if (sk->sk_owner)
		return;
#endif
	switch (sk->sk_family) {
	case AF_INET:
		sock_lock_init_class_and_name(sk, "slock-AF_INET-BLKIO", &slock_key[0],
					      "sk_lock-AF_INET-BLKIO", &sk_key[0]);
		break;
	case AF_INET6:
		sock_lock_init_class_and_name(sk, "slock-AF_INET6-BLKIO", &slock_key[1],
					      "sk_lock-AF_INET6-BLKIO", &sk_key[1]);
		break;
	case AF_UNIX:
		sock_lock_init_class_and_name(sk, "slock-AF_UNIX-BLKIO", &slock_key[2],
					      "sk_lock-AF_UNIX-BLKIO", &sk_key[2]);
		break;
	}
}
#else
static inline void sock_reclassify_block_io(struct sock *sk)
{
}
#endif

__rust_helper void rust_helper_sock_set_rcvtimeo(struct socket *sock, long timeo)
{
	WRITE_ONCE(sock->sk->sk_rcvtimeo, timeo);
}

__rust_helper void rust_helper_sock_set_sndtimeo(struct socket *sock, long timeo)
{
	WRITE_ONCE(sock->sk->sk_sndtimeo, timeo);
}

__rust_helper bool rust_helper_sock_owned_by_user_nocheck(struct socket *sock)
{
	return sock_owned_by_user_nocheck(sock->sk);
}

/*
 * How many bytes the socket may be sent without waiting, or -1 if it copies what
 * is spliced into it: for an upper layer protocol, or a device that cannot gather.
 */
__rust_helper int rust_helper_sock_splice_room(struct socket *sock)
{
	struct sock *sk = sock->sk;

	if (sk_is_tcp(sk))
		return inet_csk_has_ulp(sk) || !(sk->sk_route_caps & NETIF_F_SG) ? -1 :
			max(sk_stream_wspace(sk), 0);
	return max(READ_ONCE(sk->sk_sndbuf) - sk_wmem_alloc_get(sk), 0);
}

/*
 * How many bytes of what was sent the peer does not have: those that it has not
 * acknowledged, or that wait in the queue of an AF_UNIX peer.
 */
__rust_helper unsigned int rust_helper_sock_unread(struct socket *sock)
{
	struct sock *sk = sock->sk, *peer;
	unsigned int unread;

	if (sk_is_tcp(sk))
		return READ_ONCE(tcp_sk(sk)->write_seq) - READ_ONCE(tcp_sk(sk)->snd_una);
	/* With the lock the peer stays. */
	unix_state_lock(sk);
	peer = unix_peer(sk);
	unread = peer ? READ_ONCE(unix_sk(peer)->inq_len) : 0;
	unix_state_unlock(sk);
	return unread;
}

/*
 * What an AF_UNIX socket has room for while it carries block I/O, in bytes. By
 * default it is less than one long write, for which the sender waits several
 * times then. TCP finds out by itself what a connection needs.
 */
#define SOCK_BLOCK_IO_SNDBUF	SZ_1M

/*
 * Block I/O may be what frees memory, so a socket that carries it must not
 * wait for memory that only block I/O can free. Nor must it wait for more than
 * one reply because its user once asked for that, nor linger when it is closed.
 * Returns whether the socket may use memory reserves from now on and could not
 * before. This is sk_set_memalloc() with the lock that the flags need; the
 * static key has locks that must not nest in it. @sndbuf is 0 if the room for
 * what is sent was left as it is.
 */
__rust_helper bool rust_helper_sock_set_block_io(struct socket *sock, gfp_t *allocation,
						 int *sndbuf)
{
	struct sock *sk = sock->sk;
	bool memalloc;

	sock_reclassify_block_io(sk);
	lock_sock(sk);
	memalloc = !sock_flag(sk, SOCK_MEMALLOC);
	sock_set_flag(sk, SOCK_MEMALLOC);
	sock_reset_flag(sk, SOCK_LINGER);
	*allocation = sk->sk_allocation;
	/* Some upper layer protocols allocate where they must not sleep. */
	if (gfpflags_allow_blocking(sk->sk_allocation))
		sk->sk_allocation = GFP_NOIO;
	sk->sk_allocation |= __GFP_MEMALLOC;
	sk->sk_use_task_frag = false;
	WRITE_ONCE(sk->sk_rcvlowat, 1);
	*sndbuf = 0;
	if (sk->sk_family == AF_UNIX && !(sk->sk_userlocks & SOCK_SNDBUF_LOCK) &&
	    sk->sk_sndbuf < SOCK_BLOCK_IO_SNDBUF) {
		*sndbuf = sk->sk_sndbuf;
		WRITE_ONCE(sk->sk_sndbuf, SOCK_BLOCK_IO_SNDBUF);
	}
	release_sock(sk);
	if (memalloc)
		static_branch_inc(&memalloc_socks_key);
	return memalloc;
}

/* Takes that back, and what a user may have set since that would stall who closes it. */
__rust_helper void rust_helper_sock_clear_block_io(struct socket *sock, gfp_t allocation,
						   int sndbuf, bool memalloc)
{
	struct sock *sk = sock->sk;

	lock_sock(sk);
	sock_reset_flag(sk, SOCK_LINGER);
	WRITE_ONCE(sk->sk_rcvtimeo, MAX_SCHEDULE_TIMEOUT);
	WRITE_ONCE(sk->sk_sndtimeo, MAX_SCHEDULE_TIMEOUT);
	if (sndbuf && !(sk->sk_userlocks & SOCK_SNDBUF_LOCK))
		WRITE_ONCE(sk->sk_sndbuf, sndbuf);
	if (memalloc) {
		sock_reset_flag(sk, SOCK_MEMALLOC);
		/* An upper layer protocol may have come and have its own since. */
		if (gfpflags_allow_blocking(sk->sk_allocation))
			sk->sk_allocation = allocation;
		sk->sk_allocation &= ~__GFP_MEMALLOC;
		sk_mem_reclaim(sk);
	}
	release_sock(sk);
	if (memalloc)
		static_branch_dec(&memalloc_socks_key);
}

/*
 * Hands the events of a socket to @ready and @error, which find @user in
 * sk_user_data, and returns the functions before them. A clone of the socket
 * does not get @user. Fails if sk_user_data is in use.
 */
__rust_helper bool
rust_helper_sock_set_callbacks(struct socket *sock, void *user,
			       void (*ready)(struct sock *sk), void (*error)(struct sock *sk),
			       void (**old_ready)(struct sock *sk),
			       void (**old_error)(struct sock *sk))
{
	struct sock *sk = sock->sk;
	bool unused;

	write_lock_bh(&sk->sk_callback_lock);
	unused = !sk->sk_user_data;
	if (unused) {
		*old_ready = sk->sk_data_ready;
		*old_error = sk->sk_error_report;
		__rcu_assign_sk_user_data_with_flags(sk, user, SK_USER_DATA_NOCOPY);
		WRITE_ONCE(sk->sk_error_report, error);
		WRITE_ONCE(sk->sk_data_ready, ready);
	}
	write_unlock_bh(&sk->sk_callback_lock);
	return unused;
}

/*
 * Takes that back. Returns whether @user was still there, and in @saved whether
 * somebody may have saved one of the functions to call it later.
 */
__rust_helper bool
rust_helper_sock_restore_callbacks(struct sock *sk, void *user,
				   void (*ready)(struct sock *sk),
				   void (*error)(struct sock *sk),
				   void (*old_ready)(struct sock *sk),
				   void (*old_error)(struct sock *sk), bool *saved)
{
	bool ours;

	*saved = false;
	write_lock_bh(&sk->sk_callback_lock);
	ours = __locked_read_sk_user_data_with_flags(sk, SK_USER_DATA_NOCOPY) == user;
	if (ours)
		rcu_assign_sk_user_data(sk, NULL);
	if (sk->sk_data_ready == ready)
		WRITE_ONCE(sk->sk_data_ready, old_ready);
	else
		*saved = true;
	if (sk->sk_error_report == error)
		WRITE_ONCE(sk->sk_error_report, old_error);
	else
		*saved = true;
	write_unlock_bh(&sk->sk_callback_lock);
	return ours;
}

/* What sock_set_callbacks() has set, in a read-side critical section of RCU. */
__rust_helper void *rust_helper_sock_callback_data(struct sock *sk)
{
	uintptr_t data = (uintptr_t)rcu_dereference(__sk_user_data(sk));

	if ((data & ~SK_USER_DATA_PTRMASK) != SK_USER_DATA_NOCOPY)
		return NULL;
	return (void *)(data & SK_USER_DATA_PTRMASK);
}

/* What a socket does without a callback when bytes arrive. */
__rust_helper void rust_helper_sock_wake_readers(struct sock *sk)
{
	struct socket_wq *wq;

	rcu_read_lock();
	wq = rcu_dereference(sk->sk_wq);
	if (skwq_has_sleeper(wq))
		wake_up_interruptible_sync_poll(&wq->wait, EPOLLIN | EPOLLPRI |
						EPOLLRDNORM | EPOLLRDBAND);
	sk_wake_async_rcu(sk, SOCK_WAKE_WAITD, POLL_IN);
	rcu_read_unlock();
}

/* What a socket does without a callback when it has an error. */
__rust_helper void rust_helper_sock_wake_all(struct sock *sk)
{
	struct socket_wq *wq;

	rcu_read_lock();
	wq = rcu_dereference(sk->sk_wq);
	if (skwq_has_sleeper(wq))
		wake_up_interruptible_poll(&wq->wait, EPOLLERR);
	sk_wake_async_rcu(sk, SOCK_WAKE_IO, POLL_ERR);
	rcu_read_unlock();
}

__rust_helper bool rust_helper_sk_is_tcp(const struct sock *sk)
{
	return sk_is_tcp(sk);
}

/* Whether what goes over the socket goes through an upper layer protocol, such as TLS. */
__rust_helper bool rust_helper_sk_has_ulp(const struct sock *sk)
{
	return sk_is_inet(sk) && inet_csk_has_ulp(sk);
}

/*
 * Whether the owner of a TCP socket's lock has just disconnected it. What a
 * network card reports from an interrupt is not that.
 */
__rust_helper bool rust_helper_sk_is_disconnected(const struct sock *sk)
{
	return sk_is_tcp(sk) && READ_ONCE(sk->sk_state) == TCP_CLOSE && !in_hardirq() &&
	       !irqs_disabled();
}

__rust_helper struct sock *rust_helper_sock_sk(struct socket *sock)
{
	return sock->sk;
}

/*
 * Has @actor read what has arrived, with the lock of the socket held. Returns
 * whether it has read all.
 */
__rust_helper bool rust_helper_tcp_read_sock(struct sock *sk, void *data,
					     sk_read_actor_t actor)
{
	read_descriptor_t desc = { .arg.data = data, .count = 1 };

	tcp_read_sock(sk, &desc, actor);
	return skb_queue_empty(&sk->sk_receive_queue);
}

__rust_helper size_t rust_helper_iov_iter_count(const struct iov_iter *i)
{
	return iov_iter_count(i);
}

/* Waits for everybody that holds the lock of the socket now. */
__rust_helper void rust_helper_sock_wait_unlocked(struct socket *sock)
{
	lock_sock(sock->sk);
	release_sock(sock->sk);
}

__rust_helper bool rust_helper_sk_has_data(const struct sock *sk)
{
	return !skb_queue_empty_lockless(&sk->sk_receive_queue);
}

/*
 * Has @actor take the next buffer that has arrived on an AF_UNIX socket, if there
 * is one and no other task receives: that task may fault while it copies, and a
 * user can delay that at will.
 */
__rust_helper void rust_helper_sock_read_skb(struct sock *sk, skb_read_actor_t actor)
{
	if (!skb_queue_empty_lockless(&sk->sk_receive_queue) &&
	    !mutex_is_locked(&unix_sk(sk)->iolock))
		READ_ONCE(sk->sk_socket->ops)->read_skb(sk, actor);
}

__rust_helper void rust_helper_skb_queue_head_init(struct sk_buff_head *list)
{
	skb_queue_head_init(list);
}
