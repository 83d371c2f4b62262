// Package keepalived tells what keepalived does on this host, from outside and
// without ever being in its way.
//
// It reads keepalived's events, as the arguments of a notify script
// ([ParseNotify]) and as lines of a notify FIFO ([FIFO], [ParseLine]); its
// configuration ([ReadConfig]); and the addresses that this host holds
// ([Addresses]). From these [Roles] says which VRRP instance is MASTER here.
// [LookAgain] and [Listener] are the two ends of a notify script that only
// says "look again".
//
// Events are hints: scripts run in no certain order, a FIFO that is full loses
// lines, and neither tells the present state to one who comes late. What
// decides is whether the addresses of an instance are held. What cannot be
// known is [Unknown], never a guess.
//
// Facts about keepalived are those of version 2.2.7 (Debian 12) unless another
// version is named: keepalived.conf(5), and where that is silent, lib/notify.c,
// lib/parser.c and keepalived/vrrp/vrrp_notify.c in keepalived's source.
package keepalived
