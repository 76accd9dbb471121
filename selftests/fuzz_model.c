// SPDX-License-Identifier: GPL-2.0
/*
 * Random steps (ioctls, netlink messages, opens, closes, forks, kills, input and output, dying
 * servers) on several devices, and a model that knows what each must return and what state the
 * devices are in afterwards: DESIGN.md, section 2.
 *
 *   NBD_SEED=N     the steps to take: the same seed, the same steps
 *   NBD_STEPS=N    how many of them
 *   NBD_SCRIPT=F   take the steps from a file instead
 *   NBD_SHRINK=1   or -s: when they fail, look for few of them that fail, too
 *
 * A step that cannot be taken in the state that the model is in is left out, so that any part of
 * a script is a script. The scripts that are kept, *.steps beside the program, come first; of
 * those no step is left out. Nothing else (udev) must open the devices meanwhile.
 */
#include <glob.h>
#include <sched.h>
#include <stddef.h>
#include "kselftest.h"
#include "model.h"

#define STEPS_DEFAULT	50000
#define STEPS_MAX	(1 << 20)
#define SHOWN		25
/* The self-test: how many steps it may take to meet the wrong model, and how many may be left. */
#define WRONG_STEPS	5000
#define WRONG_LEFT	12

/* Running steps */

static const struct op ops[] = {
	{ "spawn", 4, take_spawn },
	{ "fork", 4, take_fork },
	{ "kill", 2, take_kill },
	{ "open", 40, take_open },
	{ "close", 44, take_close },
	{ "set_sock", 200, take_set_sock },
	{ "clear_sock", 16, take_clear_sock },
	{ "disconnect", 16, take_disconnect },
	{ "do_it", 200, take_do_it },
	{ "signal", 10, take_signal },
	{ "set", 300, take_set },
	{ "read", 80, take_read },
	{ "write", 60, take_write },
	{ "pending", 200, take_pending },
	{ "mute", 10, take_mute },
	{ "server_dies", 16, take_server_dies },
	{ "timeout", 3, take_timeout },
	{ "give_up", 1, take_give_up },
	{ "nl_connect", 12, take_nl_connect },
	{ "nl_connect_any", 1, take_nl_connect_any },
	{ "nl_disconnect", 18, take_nl_disconnect },
	{ "nl_reconfigure", 60, take_nl_reconfigure },
	{ "nl_status", 30, take_nl_status },
	{ "nl_place", 20, take_nl_place },
};

/* What a device can be like after a step. */
enum {
	WAS_IDLE, WAS_SETUP, WAS_STALE, WAS_IOCTL, WAS_NETLINK, WAS_MUTE, WAS_WAITING, WAS_DEAD,
	WAS_GIVEN_UP, WAS_STOPPED, WAS_ABSENT, WAS_MAX
};

static const char * const was_names[WAS_MAX] = {
	"idle", "set up", "set up by a process that has exited", "running", "running for netlink",
	"running without answers", "waiting for a connection", "without connection",
	"waiting no longer", "stopped", "absent",
};

/* What was taken, for the test to see. */
struct trace {
	long n;
	long took[ARRAY_SIZE(ops)], was[WAS_MAX];
	struct step step[STEPS_MAX];
};

static struct trace *trace;

static int like(const struct mdev *m)
{
	switch (m->state) {
	case IDLE:
		return WAS_IDLE;
	case SETUP:
		return m->owner < 0 ? WAS_STALE : WAS_SETUP;
	case STOPPED:
		return WAS_STOPPED;
	case ABSENT:
		return WAS_ABSENT;
	case RUNNING:
		break;
	}
	if (m->alive)
		return m->mute ? WAS_MUTE : m->netlink ? WAS_NETLINK : WAS_IOCTL;
	return m->given_up ? WAS_GIVEN_UP : m->params.dead ? WAS_WAITING : WAS_DEAD;
}

static void step_text(const struct step *s, char *text, size_t size)
{
	snprintf(text, size, "%s %u %u %u", ops[s->op].name, s->user, s->dev, s->arg);
}

static bool step_parse(struct step *s, const char *text)
{
	unsigned int user, dev, arg;
	char name[32];
	size_t i;

	if (sscanf(text, "%31s %u %u %u", name, &user, &dev, &arg) != 4)
		return false;
	*s = (struct step) { .user = user % USERS, .dev = dev % DEVS, .arg = arg };
	for (i = 0; i < ARRAY_SIZE(ops) && strcmp(ops[i].name, name); i++)
		;
	s->op = i;
	return i < ARRAY_SIZE(ops);
}

static struct step step_random(struct fuzz_random *r)
{
	struct step s = { .user = fuzz_pick(r, USERS), .dev = fuzz_pick(r, DEVS) };
	int total = 0, n;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(ops); i++)
		total += ops[i].weight;
	n = fuzz_pick(r, total);
	for (i = 0; n >= ops[i].weight; i++)
		n -= ops[i].weight;
	s.op = i;
	s.arg = fuzz_next(r);
	return s;
}

static bool take_step(struct step *s)
{
	char text[64];
	long long start = now_ms(), stood = fuzz->stood, took;
	int event, d;

	step_text(s, text, sizeof(text));
	fuzz_doing("step %ld: %s", trace->n, text);
	step_since = start;
	step_limit = 2500;
	if (ops[s->op].take(s) == LEFT_OUT)
		return false;
	if (trace->n < STEPS_MAX)
		trace->step[trace->n] = *s;
	trace->n++;
	trace->took[s->op]++;
	step_since = 0;
	took = now_ms() - start;
	see();
	for (d = 0; d < DEVS; d++)
		trace->was[like(&devs[d])]++;
	/* The watching process may have yet to see that the machine stood still. */
	if (!WAIT_UNTIL(took - (fuzz->stood - stood) <= scaled(step_limit), 100))
		fuzz_fail("the step took %lld ms", took);
	while (genl_event(&link_dead, 0, &event) >= 0)
		;
	if (fuzz->failed)
		fuzz_say("step %ld: %s", trace->n, text);
	return true;
}

static void finish_session(int d)
{
	struct nl_answer r;
	struct nl_msg msg;

	nl_begin(&msg, NBD_CMD_DISCONNECT, nl_index(d));
	want(fuzz_ask(&genl, &msg, &r), 0, "DISCONNECT");
	end_on_request(d);
}

/* All users go; every device is free. */
static void finish(void)
{
	struct nl_answer r;
	struct nl_msg msg;
	int d, i;

	fuzz_doing("cleaning up");
	/* Pending I/O keeps its user alive. */
	for (d = 0; d < DEVS; d++)
		if (is_pending(d))
			finish_session(d);
	see_pending();
	for (i = 0; i < USERS && !fuzz->failed; i++) {
		struct step s = { .user = i };

		take_kill(&s);
	}
	for (d = 0; d < DEVS && !fuzz->failed; d++) {
		if (devs[d].state == RUNNING)
			finish_session(d);
		/* Those that were there are there for the next test, too. */
		if (devs[d].state == ABSENT) {
			struct mparams p = { .size = MIB, .block = 1024 };
			struct sock *sock[1];
			int fd[1];

			if (new_socks(d, 1, KIND_UNIX, fd, sock) != 1)
				break;
			nl_begin(&msg, NBD_CMD_CONNECT, nl_index(d));
			nl_params(&msg, &p);
			nl_socks(&msg, fd, 1);
			want(fuzz_ask(&genl, &msg, &r), 0, "CONNECT");
			close(fd[0]);
			connected(d, p, sock, 1);
			finish_session(d);
		}
	}
	see();
}

/* Take these steps, or so many random ones. Does not return. */
static void work(const struct nbd_dev *dev, const struct step *steps, long n, unsigned long seed)
{
	struct fuzz_random rng = { .x = seed };
	int log = log_open(), i;
	cpu_set_t one;
	struct step s;
	long next = 0;

	if (!socks_init())
		_exit(1);
	debugfs = open("/sys/kernel/debug/nbd", O_PATH | O_CLOEXEC);
	for (i = 0; i < DEVS; i++) {
		devs[i].dev = dev[i];
		devs[i].state = IDLE;
		devs[i].params = defaults;
	}
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	if (shared == MAP_FAILED || genl_open(&genl) || genl_listen(&link_dead) || log < 0)
		_exit(1);
	/* Users and this one take turns: it is faster if none waits for another processor. */
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	sched_setaffinity(0, sizeof(one), &one);
	for (i = 0; i < 3; i++)
		if (!user_start(&users[i], NULL))
			_exit(1);
	while ((steps ? next < n : trace->n < n) && !fuzz->failed) {
		s = steps ? steps[next++] : step_random(&rng);
		if (take_step(&s) && trace->n % 64 == 0)
			fuzz_log_clean(log);
	}
	if (!fuzz->failed)
		finish();
	fuzz_log_clean(log);
	fuzz->done = 1;
	/* So that no task waits for a server that is in the process that waits. */
	for (i = 0; i < SOCKS; i++)
		if (socks[i].state != SOCK_FREE)
			close(socks[i].fd);
	for (i = 0; i < USERS; i++)
		if (users[i].pid)
			kill(users[i].pid, SIGKILL);
	_exit(0);
}

/* The test's side */

static struct nbd_dev dev[DEVS];
static long saw[SAW_MAX];		/* of the last run */

/* Make a device again that a run has left removed. */
static void revive(struct nbd_dev *d)
{
	struct nl_msg msg;
	int pair[2];

	if (make_pair(KIND_UNIX, pair))
		return;
	nl_begin(&msg, NBD_CMD_CONNECT, d->index);
	nl_u64(&msg, NBD_ATTR_SIZE_BYTES, MIB);
	nl_socks(&msg, pair, 1);
	nl_do(&msg);
	close(pair[0]);
	close(pair[1]);
	nl_disconnect(d->index);
}

/* NULL or what is wrong; what was found is said unless it is to be quiet. */
static const char *run(const struct step *steps, long n, unsigned long seed, bool quiet)
{
	const char *why, *wrong;
	pid_t pid;
	int i;

	for (i = 0; i < DEVS; i++) {
		why = nbd_pick(&dev[i]);
		if (why)
			ksft_exit_fail_msg("%s\n", why);
	}
	fuzz_init();
	memset(trace, 0, offsetof(struct trace, step));
	pid = fuzz_fork();
	if (!pid)
		work(dev, steps, n, seed);
	wrong = fuzz_watch(pid, 6000, quiet);
	if (wrong && !quiet)
		for (i = 0; i < DEVS; i++)
			fuzz_autopsy(dev[i].index);
	for (i = 0; wrong && i < DEVS; i++)
		nl_disconnect(dev[i].index);
	for (i = 0; i < DEVS; i++) {
		if (wrong && !nbd_sys_exists(&dev[i], "size"))
			revive(&dev[i]);
		if (!nbd_give_back(&dev[i]) && !wrong)
			wrong = "a device does not come back";
	}
	memcpy(saw, (void *)fuzz->count, sizeof(saw));
	munmap(fuzz, sizeof(*fuzz));
	return wrong;
}

static void show(const struct step *steps, long n, long first)
{
	char text[64];
	long i;

	for (i = first; i < n; i++) {
		step_text(&steps[i], text, sizeof(text));
		printf("#   %s\n", text);
	}
}

/* What the last run has taken. */
static struct step *taken(long *n)
{
	struct step *steps;

	*n = trace->n < STEPS_MAX ? trace->n : STEPS_MAX;
	steps = malloc((*n + 1) * sizeof(*steps));
	memcpy(steps, trace->step, *n * sizeof(*steps));
	return steps;
}

/* Fewer steps that fail, too. */
static long shrink(struct step *steps, long n, long max)
{
	struct step *less = malloc(n * sizeof(*less));
	long chunk, from, rest, runs = 0;

	/* Most often the last ones are enough. */
	for (chunk = 16; chunk < n && runs < max; chunk *= 4) {
		runs++;
		if (run(steps + n - chunk, chunk, 0, true)) {
			memmove(steps, steps + n - chunk, chunk * sizeof(*steps));
			n = chunk;
			break;
		}
	}
	for (chunk = n / 2; chunk && runs < max; chunk /= 2) {
		for (from = 0; from < n && runs < max;) {
			rest = from + chunk < n ? n - from - chunk : 0;
			memcpy(less, steps, from * sizeof(*less));
			memcpy(less + from, steps + n - rest, rest * sizeof(*less));
			runs++;
			if (from + rest && run(less, from + rest, 0, true)) {
				n = from + rest;
				memcpy(steps, less, n * sizeof(*less));
			} else {
				from += chunk;
			}
		}
	}
	ksft_print_msg("%ld steps are left after %ld runs:\n", n, runs);
	free(less);
	return n;
}

static struct step *read_script(const char *name, long *n)
{
	struct step *steps = malloc(STEPS_MAX * sizeof(*steps));
	FILE *f = fopen(name, "re");
	char line[128];

	*n = 0;
	if (!f)
		ksft_exit_fail_msg("%s: %s\n", name, strerror(errno));
	while (*n < STEPS_MAX && fgets(line, sizeof(line), f)) {
		if (strspn(line, "# \t\n") == strlen(line) || line[0] == '#')
			continue;
		if (!step_parse(&steps[*n], line))
			ksft_exit_fail_msg("%s: no step: %s", name, line);
		++*n;
	}
	fclose(f);
	return steps;
}

static void write_script(const char *name, const struct step *steps, long n)
{
	FILE *f = fopen(name, "we");
	char text[64];
	long i;

	for (i = 0; f && i < n; i++) {
		step_text(&steps[i], text, sizeof(text));
		fprintf(f, "%s\n", text);
	}
	if (f)
		fclose(f);
}

/* A script that is kept: it says what it is about, so no step of it is left out. */
static void test_script(const char *name)
{
	struct step *steps;
	long n;

	steps = read_script(name, &n);
	if (run(steps, n, 0, false)) {
		show(trace->step, trace->n, 0);
		ksft_test_result_fail("%s\n", strrchr(name, '/') + 1);
	} else {
		if (trace->n != n)
			ksft_print_msg("%ld of %ld steps were left out\n", n - trace->n, n);
		ksft_test_result(n && trace->n == n, "%s\n", strrchr(name, '/') + 1);
	}
	free(steps);
}

/* A model that is wrong is found to be; of its steps few are left, which only it minds. */
static void test_wrong_model(void)
{
	struct step *steps = NULL, *again = NULL;
	char name[] = "/tmp/nbd-steps-XXXXXX";
	unsigned long seed;
	bool ok = false;
	long n, m = 0;

	close(mkstemp(name));
	wrong_model = true;
	for (seed = 1; seed < 5 && !ok; seed++)
		ok = run(NULL, WRONG_STEPS, seed, true);
	if (!ok)
		ksft_print_msg("it was not found\n");
	if (ok) {
		steps = taken(&n);
		n = shrink(steps, n, 200);
		show(steps, n, 0);
		/* As a file, which is how it would be kept. */
		write_script(name, steps, n);
		again = read_script(name, &m);
		ok = n <= WRONG_LEFT && m == n && run(again, m, 0, true);
		if (!ok)
			ksft_print_msg("these are too many, or do not fail again\n");
	}
	wrong_model = false;
	if (ok && run(again, m, 0, false)) {
		ksft_print_msg("these fail with the right model, too\n");
		ok = false;
	}
	ksft_test_result(ok, "a wrong model is found, and the steps shrink\n");
	unlink(name);
	free(steps);
	free(again);
}

/* In a long run everything is seen, and what is rare is not too rare. */
static void test_all_seen(long n)
{
	static const struct {
		int what, least;	/* least in 50000 steps */
		const char *name;
	} rare[] = {
		{ SAW_IOCTL, 100, "ioctl sessions" }, { SAW_NETLINK, 100, "netlink sessions" },
		{ SAW_DEAD, 100, "dead servers" }, { SAW_PENDING, 50, "waiting I/Os" },
		{ SAW_FORKS, 50, "forks" }, { SAW_KILLS, 150, "kills" },
		{ SAW_REMOVED, 50, "removed devices" },
	};
	bool ok = true;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(ops); i++) {
		ok = ok && trace->took[i];
		if (!trace->took[i])
			ksft_print_msg("no step was %s\n", ops[i].name);
	}
	for (i = 0; i < WAS_MAX; i++) {
		ok = ok && trace->was[i];
		if (!trace->was[i])
			ksft_print_msg("no device was %s\n", was_names[i]);
	}
	for (i = 0; i < ARRAY_SIZE(rare); i++) {
		if (saw[rare[i].what] >= rare[i].least * n / STEPS_DEFAULT)
			continue;
		ksft_print_msg("only %ld %s\n", saw[rare[i].what], rare[i].name);
		ok = false;
	}
	ksft_test_result(ok, "every kind of step and of state was seen\n");
}

static void print_seen(void)
{
	size_t i;

	ksft_print_msg("%ld ioctl and %ld netlink sessions, %ld servers died, %ld I/Os waited\n",
		       saw[SAW_IOCTL], saw[SAW_NETLINK], saw[SAW_DEAD], saw[SAW_PENDING]);
	ksft_print_msg("%ld forks, %ld kills, %ld devices removed\n", saw[SAW_FORKS],
		       saw[SAW_KILLS], saw[SAW_REMOVED]);
	ksft_print_msg("%ld timeouts, %ld waits in vain\n", saw[SAW_TIMEOUTS], saw[SAW_GIVEN_UP]);
	printf("# steps:");
	for (i = 0; i < ARRAY_SIZE(ops); i++)
		printf(" %s %ld", ops[i].name, trace->took[i]);
	printf("\n# devices after them:");
	for (i = 0; i < WAS_MAX; i++)
		printf("%s %s %ld", i ? "," : "", was_names[i], trace->was[i]);
	printf("\n");
}

int main(int argc, char **argv)
{
	bool less = fuzz_env("NBD_SHRINK", 0) || (argc > 1 && !strcmp(argv[1], "-s"));
	const char *script = getenv("NBD_SCRIPT"), *wrong;
	unsigned long seed = fuzz_seed();
	long n = fuzz_env("NBD_STEPS", scaled_down(STEPS_DEFAULT));
	bool lone = script && *script, longest = n >= STEPS_DEFAULT, slow = scaled(1) > 1;
	struct step *steps = NULL;
	glob_t kept = {};
	char path[4200];
	long long start;
	size_t i;

	ksft_print_header();
	if (geteuid())
		ksft_exit_skip("must be run as root\n");
	if (!nbd_is_rust())
		ksft_exit_skip("the C driver hangs: its tables are others\n");
	trace = mmap(NULL, sizeof(*trace), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		     -1, 0);
	if (trace == MAP_FAILED)
		ksft_exit_fail_msg("no memory\n");
	if (lone) {
		ksft_set_plan(1);
		steps = read_script(script, &n);
	} else {
		snprintf(path, sizeof(path), "%s/*.steps", nbd_dir());
		if (glob(path, 0, NULL, &kept))
			ksft_exit_fail_msg("no scripts: %s\n", path);
		/* The shrinker is the same on all kernels. */
		ksft_set_plan(kept.gl_pathc + !slow + longest + 1);
		for (i = 0; i < kept.gl_pathc; i++)
			test_script(kept.gl_pathv[i]);
		if (!slow)
			test_wrong_model();
		ksft_print_msg("NBD_SEED=%lu NBD_STEPS=%ld\n", seed, n);
	}
	start = now_ms();
	wrong = run(steps, n, seed, false);
	ksft_print_msg("%ld steps, %lld ms\n", trace->n, now_ms() - start);
	report_count(trace->n, "steps");
	print_seen();
	if (!wrong && !lone && longest)
		test_all_seen(n);
	else if (!lone && longest)
		ksft_test_result_skip("every kind of step and of state was seen\n");
	if (wrong) {
		free(steps);
		steps = taken(&n);
		printf("# the last steps were:\n");
		show(steps, n, n > SHOWN ? n - SHOWN : 0);
		ksft_print_msg("%s\n", wrong);
		if (less) {
			n = shrink(steps, n, fuzz_env("NBD_SHRINK_RUNS", 400));
			show(steps, n, 0);
			run(steps, n, 0, false);
		}
	}
	ksft_test_result(!wrong, "steps of the model\n");
	ksft_finished();
}
