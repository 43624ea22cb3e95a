import type { ProxyRow, Proxies as ProxyRows, ProxyToken } from '../catalog/proxies.ts';
import { RouseError } from '../errors.ts';
import { requestKeyHash } from '../lib/certificates.ts';
import type { Clock } from '../lib/clock.ts';
import { certificateFacts } from '../lib/identity.ts';
import type { Random } from '../lib/random.ts';
import type { SeenPeer } from '../lib/secure-server.ts';
import { formatDuration } from '../lib/text.ts';
import { formatTime } from '../lib/times.ts';
import { linkLimits } from '../proxy/link-limits.ts';
import type { EnrolAnswer, EnrolCall, HeartbeatAnswer } from '../proxy/link-wire.ts';
import type { HeartbeatCall, RenewAnswer } from '../proxy/link-wire.ts';
import { secretHash, tokenIdBytes, tokenSecretBytes, writeToken } from '../proxy/token.ts';
import { wireVersion } from '../proxy/wire.ts';
import type { OwnAuthority } from './authority.ts';
import { problemOf, type ProxyRegistry } from './registry.ts';
import { proxyLabels, proxyName } from './schema.ts';

/**
 * How a proxy on another machine joins and stays. A token is good for one key, one name at most and
 * a short time; it is used up in the same transaction that makes the proxy known. Afterwards only
 * certificates count, and only those that the catalog knows: taking one back is forgetting it.
 */
export interface EnrolmentDesk {
  readonly clock: Clock;
  readonly random: Random;
  readonly rows: ProxyRows;
  readonly registry: ProxyRegistry;
  readonly authority: OwnAuthority;
  transaction<T>(work: () => Promise<T>): Promise<T>;
  tell(level: 'info' | 'warning', kind: string, name: string, message: string): unknown;
}

export class Enrolment {
  readonly #desk: EnrolmentDesk;

  constructor(desk: EnrolmentDesk) {
    this.#desk = desk;
  }

  /** `name`: for a proxy of that name alone, which may be one that is known: it joins anew. */
  async newToken(
    name: string | null,
    lifeMs: number,
  ): Promise<{ token: string; expiresMs: number }> {
    const { random, rows, clock, authority } = this.#desk;
    const id = random.bytes(tokenIdBytes).toString('hex');
    const secret = random.bytes(tokenSecretBytes).toString('hex');
    const createdMs = clock.now();
    const expiresMs = createdMs + lifeMs;
    await rows.dropTokens(createdMs - linkLimits.tokenKeptMs);
    await rows.addToken({
      id,
      secretHash: secretHash(secret),
      proxyName: name,
      createdMs,
      expiresMs,
      usedMs: null,
      usedBy: null,
      usedKey: null,
    });
    return { token: writeToken({ id, secret, fingerprint: authority.fingerprint }), expiresMs };
  }

  async enrol(call: EnrolCall): Promise<EnrolAnswer> {
    const { rows, authority, clock, transaction } = this.#desk;
    this.#refuseOtherVersion(call);
    this.#refuseOtherTime(call.nowMs);
    const name = checkedName(call.name);
    const labels = proxyLabels.parse(call.labels);
    const key = await requestKeyHash(call.request);
    const certificate = await authority.signProxy(call.request, name);
    const { fingerprint, endMs } = certificateFacts(certificate);
    await transaction(async () => {
      const token = await this.#usableToken(call, name, key);
      await this.#makeRoom(name, token, key);
      await rows.useToken(token.id, { usedMs: clock.now(), usedBy: name, usedKey: key });
      await rows.put({
        name,
        kind: 'enrolled',
        addresses: [],
        enrolledMs: clock.now(),
        fingerprint,
        nextFingerprint: null,
        certificateEndMs: endMs,
        labels,
      });
    });
    await this.#desk.tell('info', 'proxy.enrolled', name, `proxy ${name} was enrolled`);
    return { name, certificate, authority: authority.identity.authority };
  }

  #refuseOtherVersion({ wire, version }: EnrolCall): void {
    if (wire === wireVersion) return;
    const message = `the proxy (${version}) speaks version ${wire}, the server ${wireVersion}`;
    throw new RouseError('wrong-state', message, {
      advice: wire < wireVersion ? 'Update Rouse on the proxy.' : 'Update Rouse on the server.',
    });
  }

  #refuseOtherTime(theirsMs: number): void {
    const oursMs = this.#desk.clock.now();
    const apartMs = Math.abs(theirsMs - oursMs);
    if (apartMs <= linkLimits.skewMsMax) return;
    const clocks = `the proxy's says ${formatTime(theirsMs)}, the server's ${formatTime(oursMs)}`;
    throw new RouseError(
      'wrong-state',
      `the clocks are ${formatDuration(apartMs)} apart: ${clocks}`,
      {
        advice: 'Set the wrong one right (timedatectl set-ntp true); the token is not used up.',
      },
    );
  }

  async #usableToken(call: EnrolCall, name: string, key: string): Promise<ProxyToken> {
    const again = 'Print a new one on the server: rouse proxy token';
    const token = await this.#desk.rows.token(call.tokenId);
    if (token === undefined || token.secretHash !== hashOf(call.secret)) {
      throw new RouseError('unauthorised', 'this server does not know that token', {
        advice: `${again}; one that ended long ago is forgotten.`,
      });
    }
    if (token.usedMs !== null && token.usedKey !== key) {
      const when = formatTime(token.usedMs);
      throw new RouseError('unauthorised', `the token was used by ${token.usedBy} at ${when}`, {
        advice: `${again}. If nobody of yours did that, remove it: rouse proxy remove ${token.usedBy}`,
      });
    }
    if (this.#desk.clock.now() > token.expiresMs) {
      const when = formatTime(token.expiresMs);
      throw new RouseError('unauthorised', `the token expired at ${when}`, { advice: `${again}.` });
    }
    const bound = token.usedBy ?? token.proxyName;
    if (bound !== null && bound !== name) {
      throw new RouseError('forbidden', `the token is for proxy ${bound}, not for ${name}`, {
        advice: `Enrol it under that name: --name ${bound}; or print a new token for ${name}.`,
      });
    }
    return token;
  }

  /** A name that is taken may be joined anew with a token for just that name. */
  async #makeRoom(name: string, token: ProxyToken, key: string): Promise<void> {
    const { rows, clock } = this.#desk;
    const known = await rows.find(name);
    if (known === undefined || token.usedKey === key) return;
    if (known.kind === 'enrolled' && token.proxyName === name) {
      await rows.takeBack(name, clock.now());
      return;
    }
    throw new RouseError('already-exists', `a proxy named ${name} is known`, {
      advice:
        known.kind === 'embedded'
          ? 'Choose another name with --name.'
          : `Choose another with --name; to join it anew: rouse proxy token --name ${name}`,
    });
  }

  async heartbeat(peer: SeenPeer | undefined, call: HeartbeatCall): Promise<HeartbeatAnswer> {
    const { registry } = this.#desk;
    const { name } = await this.#known(peer);
    const { status, addresses, callAddress, callPort } = call;
    const row = await registry.heard(name, status, { addresses, callAddress, callPort });
    return { state: row.draining === 1 ? 'draining' : 'connected', problem: problemOf(row) };
  }

  /** The new certificate counts from its first use; until then the old one does as well. */
  async renew(peer: SeenPeer | undefined, request: string): Promise<RenewAnswer> {
    const { rows, authority } = this.#desk;
    const { name } = await this.#known(peer);
    const certificate = await authority.signProxy(request, name);
    const { fingerprint: nextFingerprint } = certificateFacts(certificate);
    await rows.update(name, { nextFingerprint });
    return { certificate };
  }

  /** The proxy that shows this certificate. Throws `unauthorised`, `forbidden` with what to do. */
  async #known(peer: SeenPeer | undefined): Promise<ProxyRow> {
    const { rows } = this.#desk;
    if (peer === undefined) {
      throw new RouseError('unauthorised', 'no certificate was shown', {
        advice: 'Enrol this proxy: rouse proxy enrol',
      });
    }
    const { name, role, fingerprint, endMs } = peer.facts;
    const removedMs = await rows.removedMs(fingerprint);
    const anew = `Enrol it anew: rouse proxy token --name ${name} on the server.`;
    if (removedMs !== undefined) {
      const message = `proxy ${name} was removed, or joined anew, at ${formatTime(removedMs)}`;
      throw new RouseError('forbidden', message, { advice: anew });
    }
    if (peer.distrust === 'CERT_HAS_EXPIRED') {
      const message = `the certificate of proxy ${name} expired at ${formatTime(endMs)}`;
      throw new RouseError('unauthorised', message, { advice: anew });
    }
    if (peer.distrust !== null || role !== 'Rouse proxy') {
      const message = `this server did not give that certificate (${peer.distrust ?? role})`;
      throw new RouseError('unauthorised', message, { advice: anew });
    }
    const row = await rows.find(name);
    if (row?.fingerprint === fingerprint) return row;
    if (row?.nextFingerprint !== fingerprint) {
      const message = `no proxy ${name} with that certificate is known`;
      throw new RouseError('forbidden', message, { advice: anew });
    }
    await rows.update(name, { fingerprint, nextFingerprint: null, certificateEndMs: endMs });
    return { ...row, fingerprint, nextFingerprint: null };
  }
}

function checkedName(text: string): string {
  const parsed = proxyName.safeParse(text);
  if (parsed.success) return parsed.data;
  const why = parsed.error.issues[0]?.message ?? 'is wrong';
  throw new RouseError('bad-request', `the name "${text}" ${why}`, {
    advice: 'Choose another: --name NAME',
  });
}

function hashOf(secret: string): string {
  return /^[0-9a-f]+$/.test(secret) ? secretHash(secret) : '';
}
