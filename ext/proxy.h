/*
 * proxy.h - the PROXY protocol, versions 1 and 2: the line or block with which a proxy says whose connection it passes on
 * (haproxy.org/download/3.0/doc/proxy-protocol.txt).  Bytes in; an address, "more wanted" or an error out.
 */
#ifndef PROXY_H
#define PROXY_H

#include <netinet/in.h>
#include <stddef.h>

union proxy_peer {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

enum {
    PROXY_PARTIAL = 0,
    PROXY_ABSENT = -1,    /* the connection does not begin with a PROXY header */
    PROXY_MALFORMED = -2,
};

/* The header's length, or one of the above.  `peer` becomes the client's address, or stays as it is where the proxy
 * speaks for itself (LOCAL, UNKNOWN) or the address is of no family that we know. */
int proxy_parse(const char *buf, size_t len, union proxy_peer *peer);

#endif
