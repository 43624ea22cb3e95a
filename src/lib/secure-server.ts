import { constants } from 'node:crypto';
import type * as http from 'node:http';
import * as https from 'node:https';
import { TLSSocket } from 'node:tls';
import type { FastifyServerFactory } from 'fastify';
import { certificateFacts, type CertificateFacts, type Identity } from './identity.ts';

/** The listening side of secure-agent.ts: TLS 1.3, each connection shows its certificate. */
export interface SecureServer {
  readonly factory: FastifyServerFactory;
  /** The port that it listens on. */
  port(): number;
  /** Shows another certificate from now on. */
  show(identity: Identity): void;
}

/** `strangers`: those without a certificate of the authority get in; who they are is asked later. */
export function secureServer(identity: Identity, strangers: boolean): SecureServer {
  const server = https.createServer(shown(identity, strangers));
  return {
    factory: (handler) => {
      server.on('request', handler as unknown as http.RequestListener);
      // An https.Server does all that Fastify asks of an http.Server; their types do not say so.
      return server as unknown as http.Server;
    },
    port: () => {
      const address = server.address();
      return typeof address === 'object' && address !== null ? address.port : 0;
    },
    show: (renewed) => server.setSecureContext(shown(renewed, strangers)),
  };
}

function shown({ key, certificate, authority }: Identity, strangers: boolean) {
  return {
    key,
    cert: certificate,
    ca: authority,
    minVersion: 'TLSv1.3',
    requestCert: true,
    rejectUnauthorized: !strangers,
    // Sessions are not resumed: a certificate that was taken back is seen at once.
    secureOptions: constants.SSL_OP_NO_TICKET,
  } as const;
}

export interface SeenPeer {
  readonly facts: CertificateFacts;
  /** Why the authority does not vouch for it (`CERT_HAS_EXPIRED`, …); null: it does. */
  readonly distrust: string | null;
}

/** Who is at the other end; undefined: it shows no certificate. */
export function peerOf(request: { readonly socket: unknown }): SeenPeer | undefined {
  const { socket } = request;
  if (!(socket instanceof TLSSocket)) return undefined;
  const { raw } = socket.getPeerCertificate() as { raw?: Buffer };
  if (raw === undefined) return undefined;
  const error: unknown = socket.authorizationError;
  const distrust = socket.authorized ? null : String(error ?? 'not trusted');
  return { facts: certificateFacts(raw), distrust };
}
