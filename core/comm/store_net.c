/* Addresses and sockets of the control store. */
#include "comm/store_priv.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL /* there, a socket has SO_NOSIGPIPE */
#define MSG_NOSIGNAL 0
#endif

#define HOST_SIZE 256
#define STACK_BYTES ((size_t)256 << 10) /* of a thread of the store */

typedef struct place {
  char host[HOST_SIZE], port[8];
} place;

/* ---- small things ---- */

static void no_block(int fd) {
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  fcntl(fd, F_SETFD, FD_CLOEXEC);
}

/* Where the system can, a descriptor is made such that a program that another thread starts in
 * the meantime does not inherit it. */
#ifdef SOCK_CLOEXEC
#define NEW_SOCKET SOCK_CLOEXEC
#else
#define NEW_SOCKET 0
#endif

bool store_pipe(int wake[2]) {
#ifdef SOCK_CLOEXEC
  if (pipe2(wake, O_CLOEXEC) != 0) return false;
#else
  if (pipe(wake) != 0) return false;
#endif
  no_block(wake[0]);
  no_block(wake[1]);
  return true;
}

/* A full pipe has a byte in it already, and that is all that is wanted. */
void store_pipe_wake(int wake[2]) {
  int before = errno;
  while (write(wake[1], "", 1) < 0 && errno == EINTR) continue;
  errno = before;
}

void store_pipe_drain(int wake[2]) {
  char bytes[64];
  while (read(wake[0], bytes, sizeof bytes) > 0) continue;
}

void store_cond_init(pthread_cond_t *cond) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(cond, &attributes);
  pthread_condattr_destroy(&attributes);
}

void store_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, double seconds) {
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  long ns = until.tv_nsec + (long)((seconds - (double)(long)seconds) * 1e9);
  until.tv_sec += (time_t)seconds + ns / 1000000000;
  until.tv_nsec = ns % 1000000000;
  pthread_cond_timedwait(cond, lock, &until);
}

bool store_thread(pthread_t *thread, void *(*main)(void *), void *arg) {
  sigset_t all, before;
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return false;
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = pthread_create(thread, &attributes, main, arg);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  return error == 0;
}

/* A failure to set one of these costs time, and nothing is wrong without them: the store's own
 * deadlines end what they would have ended earlier. */
void store_tune(int fd, double timeout_s) {
  int on = 1;
  no_block(fd);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
#ifdef SO_NOSIGPIPE
  setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
#ifdef TCP_USER_TIMEOUT
  unsigned ms = timeout_s < 1e6 ? (unsigned)(timeout_s * 1e3) + 1 : 1000000000u;
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof ms);
#else
  (void)timeout_s;
#endif
}

bool store_read_some(int fd, unsigned char *in, size_t room, size_t *used) {
  while (*used < room) {
    ssize_t n = recv(fd, in + *used, room - *used, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return true;
    if (n <= 0) return false;
    *used += (size_t)n;
  }
  return true;
}

bool store_write_some(int fd, unsigned char *out, size_t *used) {
  size_t sent = 0;
  bool broken = false;
  while (sent < *used && !broken) {
    ssize_t n = send(fd, out + sent, *used - sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
    if (n < 0) broken = true;
    else sent += (size_t)n;
  }
  memmove(out, out + sent, *used - sent);
  *used -= sent;
  return !broken;
}

/* ---- addresses ---- */

/* "HOST:PORT", "[IPV6]:PORT" or ":PORT", up to a comma or the end. *next is behind it. */
static bool parse_place(const char *text, place *p, const char **next) {
  size_t length = strcspn(text, ",");
  const char *colon = NULL, *end = text + length;
  for (const char *c = text; c < end; c++)
    if (*c == ':') colon = c;
  *next = *end ? end + 1 : end;
  if (!colon) return false;
  size_t host = (size_t)(colon - text), port = (size_t)(end - colon - 1);
  bool brackets = host >= 2 && text[0] == '[' && colon[-1] == ']';
  if (!brackets && memchr(text, ':', host)) return false;
  if (host - (brackets ? 2 : 0) >= sizeof p->host || port == 0 || port > 5) return false;
  memcpy(p->host, text + brackets, host - (brackets ? 2 : 0));
  p->host[host - (brackets ? 2 : 0)] = '\0';
  memcpy(p->port, colon + 1, port);
  p->port[port] = '\0';
  int64_t number;
  return strspn(p->port, "0123456789") == port && bk_parse_int64(p->port, &number) &&
         number <= 65535;
}

/* NULL: getaddrinfo's error in *error. A host that is empty stands for all interfaces. */
static struct addrinfo *resolve(const place *p, int *error) {
  struct addrinfo *list = NULL;
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                           .ai_flags = AI_NUMERICSERV | (p->host[0] ? 0 : AI_PASSIVE)};
  *error = getaddrinfo(p->host[0] ? p->host : NULL, p->port, &hints, &list);
  return *error ? NULL : list;
}

static bool is_loopback(const struct sockaddr *a) {
  if (a->sa_family == AF_INET)
    return ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24 == 127;
  return a->sa_family == AF_INET6 &&
         IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr);
}

static bool all_loopback(const struct addrinfo *list) {
  for (; list; list = list->ai_next)
    if (!is_loopback(list->ai_addr)) return false;
  return true;
}

/* Without a token any program that reaches the port could join. */
static bk_status check_place(bk_context *ctx, const place *p, bool token) {
  int error;
  if (token) return BK_OK;
  struct addrinfo *list = p->host[0] ? resolve(p, &error) : NULL;
  bool inside = list && all_loopback(list);
  if (list) freeaddrinfo(list);
  if (inside) return BK_OK;
  return bk_fail(ctx, BK_ERR_ARGUMENT,
                 "control store: without a token only ranks of this machine may join, and \"%s\" "
                 "is not an address of it alone, as localhost is: set BIRKHOFF_JOB_TOKEN to the "
                 "same secret text on every rank",
                 p->host);
}

bk_status store_check_address(bk_context *ctx, const char *addresses, bool token) {
  const char *next = addresses;
  do {
    place p;
    if (!parse_place(next, &p, &next))
      return bk_fail(ctx, BK_ERR_ARGUMENT,
                     "control store: \"%s\" is not HOST:PORT with a port in 0..65535", addresses);
    BK_TRY(check_place(ctx, &p, token));
  } while (*next);
  return BK_OK;
}

/* ---- listening ---- */

static int listen_at(const struct addrinfo *a, int *error) {
  int on = 1, fd = socket(a->ai_family, a->ai_socktype | NEW_SOCKET, a->ai_protocol);
  if (fd < 0) {
    *error = errno;
    return -1;
  }
  no_block(fd);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
#ifdef IPV6_V6ONLY
  if (a->ai_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
#endif
  if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0) return fd;
  *error = errno;
  close(fd);
  return -1;
}

static int port_of(int fd) {
  struct sockaddr_storage a;
  socklen_t length = sizeof a;
  if (getsockname(fd, (struct sockaddr *)&a, &length) != 0) return 0;
  return ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port
                                       : ((struct sockaddr_in *)&a)->sin_port);
}

static void append_address(bk_store_hub *hub, const struct sockaddr *a, int port) {
  char text[INET6_ADDRSTRLEN];
  const void *from = a->sa_family == AF_INET6
                         ? (const void *)&((const struct sockaddr_in6 *)a)->sin6_addr
                         : (const void *)&((const struct sockaddr_in *)a)->sin_addr;
  size_t used = strlen(hub->address), left = sizeof hub->address - used;
  if (!inet_ntop(a->sa_family, from, text, sizeof text)) return;
  const char *format = a->sa_family == AF_INET6 ? "%s[%s]:%d" : "%s%s:%d";
  int n = snprintf(hub->address + used, left, format, used ? "," : "", text, port);
  if (n < 0 || (size_t)n >= left) hub->address[used] = '\0';
}

/* Addresses that mean something on another machine. */
static bool reachable(const struct ifaddrs *i, int family) {
  if (!i->ifa_addr || i->ifa_addr->sa_family != family || !(i->ifa_flags & IFF_UP)) return false;
  if (is_loopback(i->ifa_addr)) return false;
  return family == AF_INET ||
         !IN6_IS_ADDR_LINKLOCAL(&((const struct sockaddr_in6 *)i->ifa_addr)->sin6_addr);
}

/* Of all interfaces, those of IPv4 first; the loopback where there is no other. */
static void name_interfaces(bk_store_hub *hub, const int family[2], const int port[2], int n) {
  struct ifaddrs *list = NULL;
  if (getifaddrs(&list) != 0) list = NULL;
  for (int k = 0; k < n; k++)
    for (const struct ifaddrs *i = list; i; i = i->ifa_next)
      if (reachable(i, family[k])) append_address(hub, i->ifa_addr, port[k]);
  if (list) freeifaddrs(list);
  if (hub->address[0]) return;
  snprintf(hub->address, sizeof hub->address, family[0] == AF_INET6 ? "[::1]:%d" : "127.0.0.1:%d",
           port[0]);
}

/* Every interface: one socket for IPv4 and one for IPv6, where the machine has both. */
static void listen_everywhere(bk_store_hub *hub, struct addrinfo *list, int *error) {
  static const int families[2] = {AF_INET, AF_INET6};
  int port[2] = {0}, family[2] = {0};
  for (int k = 0; k < 2; k++)
    for (struct addrinfo *a = list; a; a = a->ai_next) {
      if (a->ai_family != families[k] || hub->n_listeners > k) continue;
      int fd = listen_at(a, error), n = hub->n_listeners;
      if (fd < 0) continue;
      hub->listeners[hub->n_listeners++] = fd;
      family[n] = families[k], port[n] = port_of(fd);
    }
  if (hub->n_listeners > 0) name_interfaces(hub, family, port, hub->n_listeners);
}

/* The first of the host's addresses that is this machine's. */
static void listen_host(bk_store_hub *hub, const place *p, struct addrinfo *list, int *error) {
  for (struct addrinfo *a = list; a && hub->n_listeners == 0; a = a->ai_next) {
    int fd = listen_at(a, error);
    if (fd < 0) continue;
    hub->listeners[hub->n_listeners++] = fd;
    snprintf(hub->address, sizeof hub->address, strchr(p->host, ':') ? "[%s]:%d" : "%s:%d", p->host,
             port_of(fd));
  }
}

/* Addresses in digits, and localhost, are what their author means. The name of a host is not
 * always: many systems give their own name a loopback address. */
static bool is_plainly_local(const place *p) {
  unsigned char address[sizeof(struct in6_addr)];
  return !p->host[0] || strcmp(p->host, "localhost") == 0 ||
         inet_pton(AF_INET, p->host, address) == 1 || inet_pton(AF_INET6, p->host, address) == 1;
}

bk_status store_listen(bk_context *ctx, const char *address, bool token, bk_store_hub *hub) {
  place p;
  const char *rest;
  int error = 0;
  BK_TRY(store_check_address(ctx, address, token));
  parse_place(address, &p, &rest);
  struct addrinfo *list = resolve(&p, &error);
  if (!list)
    return bk_fail(ctx, BK_ERR_COMM, "control store: rank 0 cannot listen at %s: %s", address,
                   gai_strerror(error));
  bool misleading = token && !is_plainly_local(&p) && all_loopback(list);
  if (p.host[0]) listen_host(hub, &p, list, &error);
  else listen_everywhere(hub, list, &error);
  freeaddrinfo(list);
  if (hub->n_listeners == 0)
    return bk_fail(ctx, BK_ERR_COMM, "control store: rank 0 cannot listen at %s: %s", address,
                   strerror(error));
  if (misleading)
    bk_warn(ctx, "control store: %s is on rank 0's machine an address of that machine alone",
            p.host);
  return BK_OK;
}

int store_accept(int listener) {
  int fd;
#ifdef SOCK_CLOEXEC
  do fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
#else
  do fd = accept(listener, NULL, NULL);
#endif
  while (fd < 0 && errno == EINTR);
  return fd;
}

/* ---- connecting ---- */

static int milliseconds_until(double deadline) {
  double left = (deadline - bk_seconds()) * 1e3;
  return left <= 0 ? 0 : left > 1e6 ? 1000000 : (int)left + 1;
}

/* One address. A host that swallows the packets costs 2 s, and then the next one is tried. */
static int connect_to(const struct addrinfo *a, double deadline, int *error) {
  int fd = socket(a->ai_family, a->ai_socktype | NEW_SOCKET, a->ai_protocol);
  socklen_t length = sizeof *error;
  if (fd < 0) {
    *error = errno;
    return -1;
  }
  no_block(fd);
  *error = connect(fd, a->ai_addr, a->ai_addrlen) == 0 ? 0 : errno;
  if (*error == EINPROGRESS || *error == EINTR) {
    double patience = bk_seconds() + 2;
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    int ready;
    do ready = poll(&p, 1, milliseconds_until(deadline < patience ? deadline : patience));
    while (ready < 0 && errno == EINTR);
    if (ready <= 0) *error = ETIMEDOUT;
    else getsockopt(fd, SOL_SOCKET, SO_ERROR, error, &length);
  }
  if (*error == 0) return fd;
  close(fd);
  return -1;
}

/* A socket that is connected to itself: the system may give a client the very port that it asks
 * for, while nobody listens there. */
static bool is_itself(int fd) {
  struct sockaddr_storage a = {0}, b = {0};
  socklen_t na = sizeof a, nb = sizeof b;
  return getsockname(fd, (struct sockaddr *)&a, &na) == 0 &&
         getpeername(fd, (struct sockaddr *)&b, &nb) == 0 && na == nb && memcmp(&a, &b, na) == 0;
}

static int connect_host(const place *p, double deadline, char *reason, size_t size) {
  int error = 0, fd = -1;
  struct addrinfo *list = resolve(p, &error);
  if (!list) {
    snprintf(reason, size, "%s:%s: %s", p->host, p->port, gai_strerror(error));
    return -1;
  }
  for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
    fd = connect_to(a, deadline, &error);
    if (fd < 0 || !is_itself(fd)) continue;
    close(fd);
    fd = -1, error = ECONNREFUSED;
  }
  freeaddrinfo(list);
  if (fd < 0) snprintf(reason, size, "%s:%s: %s", p->host, p->port, strerror(error));
  return fd;
}

int store_connect(const char *addresses, double deadline, char *reason, size_t size) {
  int fd = -1;
  for (const char *next = addresses; *next && fd < 0;) {
    place p;
    if (!parse_place(next, &p, &next)) return -1;
    fd = connect_host(&p, deadline, reason, size);
  }
  return fd;
}
