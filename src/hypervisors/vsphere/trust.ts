import { X509Certificate } from 'node:crypto';
import * as https from 'node:https';
import { isIP } from 'node:net';
import type { Duplex } from 'node:stream';
import * as tls from 'node:tls';
import { RouseError, systemErrorCode, toRouseError } from '../../errors.ts';
import { vsphereLimits } from './limits.ts';

/**
 * Why a manager is believed to be the one that was meant: its certificate has a known fingerprint,
 * or was issued by a known authority for that name. There is no third way.
 */
export type Trust =
  | { readonly fingerprint: string }
  /** SHA-1: what a manager that has proven itself tells of its hosts (HttpNfcLeaseDeviceUrl). */
  | { readonly thumbprint: string }
  /** PEM; one certificate or several. */
  | { readonly authority: string };

/** `AA:BB:…` of 32 bytes, however it was written. Throws `bad-request`. */
export function normalFingerprint(text: string): string {
  const hex = text.replaceAll(/[\s:-]/gu, '').toUpperCase();
  if (!/^[0-9A-F]{64}$/u.test(hex)) {
    throw new RouseError('bad-request', `"${text}" is not a SHA-256 fingerprint`, {
      advice: 'Write its 32 bytes as AA:BB:CC:…, as the certificate shows them.',
    });
  }
  return (hex.match(/../gu) ?? []).join(':');
}

/** What a certificate says of itself. */
export interface SeenCertificate {
  readonly fingerprint: string;
  readonly subject: string;
  readonly issuer: string;
  readonly validFrom: string;
  readonly validTo: string;
}

interface Place {
  readonly host: string;
  readonly port: number;
}

/**
 * Connections that are handed out only after the other side has shown who it is. The fingerprint
 * is compared when the handshake is over and before anything of ours is written; sessions are
 * never resumed, as a resumed one shows no certificate.
 */
export class TrustedAgent extends https.Agent {
  readonly #trust: Trust;

  constructor(trust: Trust) {
    super({
      keepAlive: true,
      maxCachedSessions: 0,
      maxSockets: vsphereLimits.socketsMax,
      maxFreeSockets: vsphereLimits.freeSocketsMax,
      scheduling: 'lifo',
    });
    this.#trust = trust;
  }

  override createConnection(
    options: https.RequestOptions,
    callback?: (error: Error | null, stream: Duplex) => void,
  ): undefined {
    const place = { host: options.host ?? 'localhost', port: Number(options.port ?? 443) };
    const tell = callback as (error: Error | null, stream?: Duplex) => void;
    connectTrusted(place, this.#trust).then(
      (socket) => tell(null, socket),
      (error: unknown) => tell(error instanceof Error ? error : new Error(String(error))),
    );
    return undefined;
  }
}

/** A TLS connection to a peer that has proven who it is; rejects and sends nothing otherwise. */
export async function connectTrusted(place: Place, trust: Trust): Promise<tls.TLSSocket> {
  if ('authority' in trust) {
    return handshake(place, { rejectUnauthorized: true, ca: trust.authority });
  }
  const socket = await handshake(place, { rejectUnauthorized: false });
  const shown = socket.getPeerX509Certificate();
  const seen = 'fingerprint' in trust ? shown?.fingerprint256 : shown?.fingerprint;
  const expected = 'fingerprint' in trust ? trust.fingerprint : trust.thumbprint.toUpperCase();
  if (seen !== undefined && seen === expected) return socket;
  socket.destroy();
  throw new RouseError(
    'forbidden',
    `${nameOf(place)} shows a certificate with another fingerprint: ${seen ?? 'none'}`,
    {
      advice:
        'Nothing was sent to it. If its certificate was renewed, check the new fingerprint on ' +
        'the machine itself and add the hypervisor again with it; else somebody is in between.',
      details: { expected, seen: seen ?? null },
    },
  );
}

/** Shakes hands, looks at the certificate, and hangs up: no byte of ours is sent. */
export async function readCertificate(place: Place): Promise<SeenCertificate> {
  const socket = await handshake(place, { rejectUnauthorized: false });
  const certificate = socket.getPeerX509Certificate();
  socket.destroy();
  if (certificate === undefined) {
    throw new RouseError('hypervisor-unreachable', `${nameOf(place)} shows no certificate`);
  }
  return {
    fingerprint: certificate.fingerprint256,
    subject: oneLine(certificate.subject),
    issuer: oneLine(certificate.issuer),
    validFrom: certificate.validFrom,
    validTo: certificate.validTo,
  };
}

/** Throws `bad-request` when the text holds no certificate. */
export function checkAuthority(pem: string): string {
  try {
    const { subject } = new X509Certificate(pem);
    return oneLine(subject);
  } catch (error) {
    throw new RouseError('bad-request', 'the file of the authority holds no PEM certificate', {
      cause: error,
      advice: 'It begins with -----BEGIN CERTIFICATE-----.',
    });
  }
}

function oneLine(name: string | undefined): string {
  return (name ?? '').split('\n').join(', ');
}

function handshake(place: Place, how: tls.ConnectionOptions): Promise<tls.TLSSocket> {
  return new Promise((resolve, reject) => {
    const socket = tls.connect({
      host: place.host,
      port: place.port,
      // RFC 6066, 3: literal addresses are no server names.
      ...(isIP(place.host) === 0 ? { servername: place.host } : {}),
      ALPNProtocols: ['http/1.1'],
      ...how,
    });
    const timer = setTimeout(() => {
      socket.destroy();
      const message = `${nameOf(place)} does not answer`;
      reject(new RouseError('hypervisor-unreachable', message, { advice: reachAdvice }));
    }, vsphereLimits.connectMsMax);
    const failed = (error: Error) => {
      clearTimeout(timer);
      socket.destroy();
      reject(connectionError(error, place));
    };
    const closed = () => failed(new Error('the connection was closed during the handshake'));
    socket.once('error', failed).once('close', closed);
    socket.once('secureConnect', () => {
      clearTimeout(timer);
      socket.off('error', failed).off('close', closed);
      socket.setNoDelay(true);
      resolve(socket);
    });
  });
}

const reachAdvice = 'Check its name and port, that it is up, and the firewall in between.';

/** Names of OpenSSL and Node for a certificate that its authority does not cover. */
const distrust =
  /CERT|SELF_SIGNED|UNABLE_TO_(?:VERIFY|GET)|ERR_TLS_CERT_ALTNAME_INVALID|HOSTNAME_MISMATCH/u;

/** What a broken connection means, as a RouseError. */
export function connectionError(error: Error, place: Place): RouseError {
  if (error instanceof RouseError) return error;
  const code = systemErrorCode(error) ?? '';
  if (distrust.test(code)) {
    return new RouseError('forbidden', `${nameOf(place)} is not trusted: ${error.message}`, {
      cause: error,
      advice: 'Nothing was sent. Name the authority of its certificate, or pin its fingerprint.',
    });
  }
  const known = toRouseError(error, nameOf(place));
  if (known.code !== 'internal' && known.code !== 'not-found') return known;
  return new RouseError(
    'hypervisor-unreachable',
    `${nameOf(place)} cannot be reached: ${error.message}`,
    { cause: error, advice: reachAdvice },
  );
}

export function nameOf(place: Place): string {
  const host = isIP(place.host) === 6 ? `[${place.host}]` : place.host;
  return place.port === 443 ? host : `${host}:${place.port}`;
}
