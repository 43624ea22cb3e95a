import * as https from 'node:https';
import type { Duplex } from 'node:stream';
import * as tls from 'node:tls';
import { RouseError, systemErrorCode } from '../errors.ts';
import { certificateFacts, type CertificateFacts, type Identity } from './identity.ts';

/**
 * TLS 1.3 to one peer that is known beforehand. Not a byte of a request is written before the
 * peer's certificate was compared: a connection is handed out only after that. Sessions are never
 * resumed, so each connection shows its certificate.
 */
export interface SecurePeer {
  /** What we show, and the authority that we trust; undefined: the peer is known by `check` alone. */
  readonly identity: Identity | undefined;
  /** What is wrong with the peer's certificate; undefined: nothing. */
  check(peer: CertificateFacts): RouseError | undefined;
}

export class SecureAgent extends https.Agent {
  readonly #peer: SecurePeer;

  constructor(peer: SecurePeer) {
    super({ keepAlive: true, maxFreeSockets: 8, maxCachedSessions: 0 });
    this.#peer = peer;
  }

  override createConnection(
    options: https.RequestOptions,
    callback?: (error: Error | null, stream: Duplex) => void,
  ): null {
    const { identity } = this.#peer;
    const { host, port } = options as { host?: string; port?: number };
    const socket = tls.connect({
      host: host ?? '',
      port: port ?? 443,
      minVersion: 'TLSv1.3',
      // Names of hosts mean nothing here: who it is stands in the certificate (checked below).
      checkServerIdentity: () => undefined,
      rejectUnauthorized: identity !== undefined,
      ...(identity === undefined
        ? {}
        : { key: identity.key, cert: identity.certificate, ca: [identity.authority] }),
    });
    const fail = (error: Error) => {
      socket.destroy();
      // Node's agent takes an error and nothing: its types know only the other case.
      (callback as ((error: Error) => void) | undefined)?.(plainly(error));
    };
    socket.once('error', fail);
    socket.once('secureConnect', () => {
      socket.off('error', fail);
      const { raw } = socket.getPeerCertificate() as { raw?: Buffer };
      const wrong =
        raw === undefined
          ? new RouseError('forbidden', 'the other side shows no certificate')
          : this.#peer.check(certificateFacts(raw));
      if (wrong !== undefined) fail(wrong);
      else callback?.(null, socket);
    });
    return null;
  }
}

/** What OpenSSL finds wrong, in words of what to do; other errors as they are. */
function plainly(error: Error): Error {
  const code = systemErrorCode(error) ?? '';
  if (code === 'CERT_HAS_EXPIRED') {
    return new RouseError('forbidden', 'the certificate of the other side has expired', {
      advice: 'Compare the clocks of both machines; then enrol the proxy again.',
      cause: error,
    });
  }
  if (code === 'CERT_NOT_YET_VALID') {
    return new RouseError('forbidden', 'the certificate of the other side is not valid yet', {
      advice: 'A clock is wrong: compare those of both machines (timedatectl).',
      cause: error,
    });
  }
  if (/^(DEPTH_ZERO_SELF_SIGNED|SELF_SIGNED|UNABLE_TO_|CERT_SIGNATURE)/.test(code)) {
    return new RouseError('forbidden', 'the other side is not of this server: another authority', {
      advice: 'Check the address; a proxy that moved to another server is enrolled again.',
      cause: error,
    });
  }
  return error;
}
