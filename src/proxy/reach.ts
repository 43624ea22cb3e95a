import * as net from 'node:net';
import * as os from 'node:os';
import { systemErrorCode } from '../errors.ts';
import { isLinkLocal } from '../lib/addresses.ts';
import { proxyLimits } from '../limits.ts';
import type { ReachView } from './port.ts';

/** Addresses of this machine with their prefixes; those of one link alone are left out. */
export function ownNetworks(): readonly string[] {
  const all = Object.values(os.networkInterfaces()).flatMap((list) => list ?? []);
  return all.flatMap(({ address, cidr }) => (cidr === null || isLinkLocal(address) ? [] : [cidr]));
}

/**
 * One TCP connection to HTTPS, which ESXi and libvirt's hosts alike either take or refuse: both are
 * an answer. Nothing is sent over it. What swallows packets leaves it open whether there is a way.
 */
export function tryToReach(address: string): Promise<ReachView['answer']> {
  return new Promise((resolve) => {
    const socket = net.connect({ host: address, port: httpsPort, timeout: proxyLimits.reachMsMax });
    const end = (answer: ReachView['answer']) => {
      socket.destroy();
      resolve(answer);
    };
    socket.once('connect', () => end('answers'));
    socket.once('timeout', () => end('silent'));
    socket.once('error', (error) => end(meaningOf(systemErrorCode(error))));
  });
}

const httpsPort = 443;

function meaningOf(code: string | undefined): ReachView['answer'] {
  if (code === 'ECONNREFUSED' || code === 'ECONNRESET') return 'answers';
  return code === 'ENETUNREACH' || code === 'EADDRNOTAVAIL' ? 'no route' : 'silent';
}
