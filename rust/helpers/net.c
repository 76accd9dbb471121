// SPDX-License-Identifier: GPL-2.0

#include <linux/lockdep.h>
#include <linux/net.h>
#include <net/sock.h>

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
static void sock_reclassify_block_io(struct sock *sk)
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
		sock_lock_init_class_and_name(sk, "slock-AF_INET-NBD", &slock_key[0],
					      "sk_lock-AF_INET-NBD", &sk_key[0]);
		break;
	case AF_INET6:
		sock_lock_init_class_and_name(sk, "slock-AF_INET6-NBD", &slock_key[1],
					      "sk_lock-AF_INET6-NBD", &sk_key[1]);
		break;
	case AF_UNIX:
		sock_lock_init_class_and_name(sk, "slock-AF_UNIX-NBD", &slock_key[2],
					      "sk_lock-AF_UNIX-NBD", &sk_key[2]);
		break;
	}
}
#else
static void sock_reclassify_block_io(struct sock *sk)
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

/*
 * Block I/O may be what frees memory, so a socket that carries it must not
 * wait for memory that only block I/O can free. Nor must it wait for more than
 * one reply because its user once asked for that.
 */
__rust_helper void rust_helper_sock_set_block_io(struct socket *sock)
{
	struct sock *sk = sock->sk;

	sock_reclassify_block_io(sk);
	sk_set_memalloc(sk);
	sk->sk_allocation = GFP_NOIO | __GFP_MEMALLOC;
	sk->sk_use_task_frag = false;
	WRITE_ONCE(sk->sk_rcvlowat, 1);
}
