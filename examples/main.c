/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * main.c - dioh-hypervisor: a small manager for one QEMU guest, to show how libdiohelper is used.
 *
 * `run` starts a guest and stays as its manager; `restore` does the same from an image. `save` asks the manager of a
 * guest, over its control socket, for an image of it. The manager owns the guest's memory (a memfd that QEMU maps), so
 * it can hand it to diohelper while QEMU holds still.
 *
 *   main.c      options and verbs; the only place that prints results and exits
 *   control.c   the control socket, both ends
 *   save.c restore.c helper.c image.c    what this example is about: a session with diohelper
 *   stock.c     a restore without one
 *   vm.c migrate.c qmp.c                 QEMU
 *   hv.c progress.c summary.c            errors, waiting, figures
 */
#include <errno.h>
#include <getopt.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "control.h"

#define EXIT_USAGE 2

struct options {
	const char *control, *disk, *serial, *helper, *qemu, *accel, *image;
	uint64_t memory_bytes;
	bool keep_running, container, stock;
};

struct verb {
	const char *name;
	const char *options; /* letters of the options that it takes; capital: it must be given */
	bool image;          /* takes an image's name */
	int (*run)(const struct options *options, struct hv_cancel *cancel, struct dioh_error *err);
};

/* ---- options --------------------------------------------------------------------------------------------------- */

static const struct option long_options[] = {
	{ "control", required_argument, NULL, 'c' }, { "disk", required_argument, NULL, 'd' },
	{ "memory", required_argument, NULL, 'm' },  { "serial", required_argument, NULL, 's' },
	{ "helper", required_argument, NULL, 'h' },  { "qemu", required_argument, NULL, 'q' },
	{ "accel", required_argument, NULL, 'a' },   { "keep-running", no_argument, NULL, 'k' },
	{ "layout", required_argument, NULL, 'l' },  { "stock", no_argument, NULL, 't' },
	{ "help", no_argument, NULL, 'u' },          { NULL, 0, NULL, 0 },
};

static const char help[] =
	"Usage: dioh-hypervisor run     --disk=FILE --control=SOCKET [--memory=SIZE] [OPTIONS]\n"
	"       dioh-hypervisor restore --disk=FILE --control=SOCKET [--stock] [OPTIONS] IMAGE\n"
	"       dioh-hypervisor save    --control=SOCKET [--layout=LAYOUT] [--keep-running] IMAGE\n"
	"       dioh-hypervisor quit    --control=SOCKET\n"
	"\n"
	"run starts a guest under QEMU and stays as its manager; restore starts one from\n"
	"an image. save makes an image of a guest and then ends it; Ctrl-C cancels that,\n"
	"and the guest runs on. quit ends a guest.\n"
	"\n"
	"  --control=SOCKET  where the guest's manager is reached\n"
	"  --disk=FILE       raw disk to boot from; it is not written\n"
	"  --memory=SIZE     the guest's memory, in MiB or with K, M, G (default 128M)\n"
	"  --serial=FILE     what the guest writes to its serial port is appended here\n"
	"                    (default: standard output)\n"
	"  --accel=tcg|kvm   how QEMU runs the guest (default tcg)\n"
	"  --layout=mapped-ram|container\n"
	"                    how the image is laid out (default mapped-ram, which a QEMU\n"
	"                    without diohelper restores too: it starts 4096 bytes into the\n"
	"                    file; with a QEMU older than 9 the container)\n"
	"  --stock           restore by QEMU alone, without diohelper\n"
	"  --keep-running    after a save the guest goes on\n"
	"  --qemu=PROGRAM    (default $QEMU or qemu-system-x86_64)\n"
	"  --helper=PROGRAM  (default $DIOHELPER or diohelper)\n";

__attribute__((format(printf, 1, 2), noreturn))
static void usage_error(const char *format, ...)
{
	va_list arguments;

	(void)fputs("dioh-hypervisor: ", stderr);
	va_start(arguments, format);
	(void)vfprintf(stderr, format, arguments);
	va_end(arguments);
	(void)fputs("; see dioh-hypervisor --help\n", stderr);
	exit(EXIT_USAGE);
}

static uint64_t parse_memory(const char *text)
{
	unsigned long long value;
	unsigned int shift = 20;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (*end)
		shift = *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
	if (end == text || errno || !shift || (*end && end[1]) || value > HV_MEMORY_BYTES_MAX >> shift)
		usage_error("--memory: could not parse '%s'", text);
	value <<= shift;
	if (value % (1 << 20) || value < HV_MEMORY_BYTES_MIN)
		usage_error("--memory: it must be whole MiB and at least 8");
	return value;
}

static void take_option(int letter, const char *value, struct options *options)
{
	switch (letter) {
	case 'c':
		options->control = value;
		break;
	case 'd':
		options->disk = value;
		break;
	case 's':
		options->serial = value;
		break;
	case 'h':
		options->helper = value;
		break;
	case 'q':
		options->qemu = value;
		break;
	case 'k':
		options->keep_running = true;
		break;
	case 't':
		options->stock = true;
		break;
	case 'l':
		options->container = strcmp(value, "container") == 0;
		if (!options->container && strcmp(value, "mapped-ram") != 0)
			usage_error("--layout: neither mapped-ram nor container: '%s'", value);
		break;
	case 'm':
		options->memory_bytes = parse_memory(value);
		break;
	case 'a':
		if (strcmp(value, "tcg") != 0 && strcmp(value, "kvm") != 0)
			usage_error("--accel: neither tcg nor kvm: '%s'", value);
		options->accel = value;
		break;
	default:
		usage_error("unknown option");
	}
}

/* Reads the options behind the verb, and holds them against what the verb takes. */
static void parse_options(int argc, char **argv, const struct verb *verb, struct options *options)
{
	char given[32] = "";
	const char *wanted;
	int letter, index;

	opterr = 0;
	while ((letter = getopt_long(argc, argv, ":", long_options, &index)) != -1) {
		if (letter == 'u')
			exit(fputs(help, stdout) < 0);
		if (letter == '?' || letter == ':')
			usage_error(letter == '?' ? "%s: unknown option" : "%s: a value is missing", argv[optind - 1]);
		if (!strchr(verb->options, letter) && !strchr(verb->options, letter - 'a' + 'A'))
			usage_error("%s does not take --%s", verb->name, long_options[index].name);
		take_option(letter, optarg, options);
		given[letter - 'a'] = 1;
	}
	for (wanted = verb->options; *wanted; wanted++) {
		if (*wanted < 'a' && !given[*wanted - 'A'])
			usage_error("%s needs --%s", verb->name, *wanted == 'C' ? "control" : "disk");
	}
	if (argc - optind != verb->image)
		usage_error(verb->image ? "%s needs the name of one image" : "%s takes no names", verb->name);
	options->image = argv[optind];
}

/* ---- verbs ----------------------------------------------------------------------------------------------------- */

/* Where the guest runs: until it is saved or ended, or until QEMU ends. */
static int manage(struct hv_vm *vm, const struct options *options, struct hv_cancel *cancel, int listen_fd,
                  struct dioh_error *err)
{
	struct hv_server server = { vm, cancel, options->helper, listen_fd, -1 };

	(void)printf("running: %s, QEMU %s, %llu MiB\n", vm->machine.type, vm->machine.qemu_version,
	             (unsigned long long)vm->machine.memory_bytes >> 20);
	(void)fflush(stdout);
	return hv_control_serve(&server, err);
}

static int start_guest(struct hv_vm *vm, const struct options *options, struct hv_cancel *cancel,
                       struct dioh_error *err)
{
	const struct hv_vm_options vm_options = { options->qemu, options->disk, options->serial };
	int rc;

	vm->machine.memory_bytes = options->memory_bytes;
	(void)snprintf(vm->machine.type, HV_NAME_BYTES, "q35");
	(void)snprintf(vm->machine.accel, HV_NAME_BYTES, "%s", options->accel);
	rc = hv_memory_create(&vm->memory_fd, err);
	if (rc == 0)
		rc = hv_memory_size(vm->memory_fd, options->memory_bytes, err);
	if (rc == 0)
		rc = hv_vm_start(vm, &vm_options, false, cancel, err);
	return rc ? rc : hv_vm_cont(vm, err);
}

static int restore_guest(struct hv_vm *vm, const struct options *options, struct hv_cancel *cancel,
                         struct dioh_error *err)
{
	const struct hv_vm_options vm_options = { options->qemu, options->disk, options->serial };
	char summary[HV_SUMMARY_BYTES];
	struct hv_display display;
	int rc;

	if (options->stock) {
		rc = hv_restore_stock(vm, options->image, &vm_options, cancel, err);
		if (rc == 0)
			(void)printf("restored by QEMU alone\n");
		return rc;
	}
	hv_display_init(&display);
	rc = hv_restore(vm, options->image, &vm_options,
	                &(struct hv_helper_options){ options->helper, cancel, &display.reporter }, summary, err);
	hv_display_end(&display);
	if (rc == 0)
		(void)printf("%s\n", summary);
	return rc;
}

static int run_or_restore(const struct options *options, struct hv_cancel *cancel, struct dioh_error *err)
{
	struct hv_vm vm = HV_VM_INIT;
	HV_CLOSE int listen_fd = -1;
	int rc = hv_control_listen(options->control, &listen_fd, err);

	if (rc)
		return rc;
	if (options->image)
		rc = restore_guest(&vm, options, cancel, err);
	else
		rc = start_guest(&vm, options, cancel, err);
	if (rc == 0)
		rc = manage(&vm, options, cancel, listen_fd, err);
	hv_vm_end(&vm);
	(void)unlink(options->control);
	return rc;
}

/* The manager may have another working directory. The image need not exist yet, its directory must. */
static int absolute_path(const char *path, char absolute[PATH_MAX], struct dioh_error *err)
{
	char for_directory[PATH_MAX], for_name[PATH_MAX], directory[PATH_MAX];

	if (strlen(path) >= PATH_MAX)
		return hv_fail(err, ENAMETOOLONG, "the image's name is too long");
	strcpy(for_directory, path);
	strcpy(for_name, path);
	if (!realpath(dirname(for_directory), directory))
		return hv_fail(err, errno, "%s: its directory cannot be found: %m", path);
	if (snprintf(absolute, PATH_MAX, "%s/%s", directory, basename(for_name)) >= PATH_MAX)
		return hv_fail(err, ENAMETOOLONG, "the image's name is too long");
	return 0;
}

static int request(const struct options *options, struct hv_request *request, struct hv_cancel *cancel,
                   struct dioh_error *err)
{
	char text[HV_SUMMARY_BYTES];
	int rc = hv_control_request(options->control, request, cancel, text, err);

	if (rc == 0)
		(void)printf("%s\n", text);
	return rc;
}

static int save(const struct options *options, struct hv_cancel *cancel, struct dioh_error *err)
{
	struct hv_request wanted = { .verb = HV_VERB_SAVE };
	int rc;

	if (options->keep_running)
		wanted.flags |= HV_REQUEST_KEEP_RUNNING;
	if (options->container)
		wanted.flags |= HV_REQUEST_CONTAINER;
	rc = absolute_path(options->image, wanted.path, err);

	return rc ? rc : request(options, &wanted, cancel, err);
}

static int quit(const struct options *options, struct hv_cancel *cancel, struct dioh_error *err)
{
	struct hv_request wanted = { .verb = HV_VERB_QUIT };

	return request(options, &wanted, cancel, err);
}

static const struct verb verbs[] = {
	{ "run", "CDmshqa", false, run_or_restore },
	{ "restore", "CDshqt", true, run_or_restore },
	{ "save", "Ckl", true, save },
	{ "quit", "C", false, quit },
};

static const struct verb *find_verb(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++) {
		if (!strcmp(verbs[i].name, name))
			return &verbs[i];
	}
	usage_error("unknown verb '%s'", name);
}

int main(int argc, char **argv)
{
	struct options options = { .helper = getenv("DIOHELPER"), .qemu = getenv("QEMU"), .accel = "tcg",
		                   .serial = "/dev/stdout", .memory_bytes = UINT64_C(128) << 20 };
	const struct verb *verb;
	struct hv_cancel cancel;
	struct dioh_error error;
	int rc;

	if (argc < 2)
		usage_error("a verb is missing");
	if (!strcmp(argv[1], "--help"))
		return fputs(help, stdout) < 0;
	if (!options.qemu)
		options.qemu = "qemu-system-x86_64";
	verb = find_verb(argv[1]);
	parse_options(argc - 1, argv + 1, verb, &options);
	rc = hv_cancel_init(&cancel, &error);
	if (rc == 0)
		rc = verb->run(&options, &cancel, &error);
	if (rc)
		(void)fprintf(stderr, "dioh-hypervisor: %s: %s\n", verb->name, error.text);
	return rc ? EXIT_FAILURE : EXIT_SUCCESS;
}
