import { readFileSync } from 'node:fs';
import * as path from 'node:path';
import { RouseError, systemErrorCode, toRouseError } from '../errors.ts';
import { type Authority, newAuthority, newRequest, signRequest } from '../lib/certificates.ts';
import type { Clock } from '../lib/clock.ts';
import { certificateFacts, type Identity, newKey } from '../lib/identity.ts';
import type { Random } from '../lib/random.ts';
import { replaceFile } from '../lib/replace-file.ts';
import { linkLimits } from '../proxy/link-limits.ts';

/**
 * The server's own authority and certificate, made when first needed and kept in two files of the
 * data directory that its owner alone may read. The authority stays; the server's certificate is
 * renewed in good time, with a new key.
 */
export interface AuthorityParts {
  readonly directory: string;
  readonly clock: Clock;
  readonly random: Random;
}

export class OwnAuthority {
  readonly #parts: AuthorityParts;
  readonly #authority: Authority;
  #shown: Authority;

  private constructor(parts: AuthorityParts, authority: Authority, shown: Authority) {
    this.#parts = parts;
    this.#authority = authority;
    this.#shown = shown;
  }

  static async open(parts: AuthorityParts): Promise<OwnAuthority> {
    const { directory, random, clock } = parts;
    const file = path.join(directory, 'authority.json');
    let authority = readPair(file);
    if (authority === undefined) {
      authority = await newAuthority(validity(clock, linkLimits.authorityMs), random);
      await replaceFile(file, `${JSON.stringify(authority, null, 2)}\n`);
    }
    const known = readPair(path.join(directory, 'server.json'));
    const own = new OwnAuthority(parts, authority, known ?? authority);
    if (known === undefined) await own.#renew();
    else await own.renewWhenDue();
    return own;
  }

  get identity(): Identity {
    return { ...this.#shown, authority: this.#authority.certificate };
  }

  get fingerprint(): string {
    return certificateFacts(this.#shown.certificate).fingerprint;
  }

  /** True: `identity` is another one now. */
  async renewWhenDue(): Promise<boolean> {
    const { beginMs, endMs } = certificateFacts(this.#shown.certificate);
    const leftMs = endMs - this.#parts.clock.now();
    if (leftMs >= (endMs - beginMs) * linkLimits.renewShare) return false;
    await this.#renew();
    return true;
  }

  async #renew(): Promise<void> {
    const { directory, clock, random } = this.#parts;
    const key = newKey();
    const who = { name: 'server', role: 'Rouse server' } as const;
    const request = await newRequest(key, who.name);
    const times = validity(clock, linkLimits.serverCertificateMs);
    const certificate = await signRequest(this.#authority, request, who, times, random);
    this.#shown = { key, certificate };
    const text = `${JSON.stringify(this.#shown, null, 2)}\n`;
    await replaceFile(path.join(directory, 'server.json'), text);
  }

  /** A certificate for the key of the request. Throws `bad-request`. */
  async signProxy(request: string, name: string): Promise<string> {
    const { clock, random } = this.#parts;
    const times = validity(clock, linkLimits.proxyCertificateMs);
    return signRequest(this.#authority, request, { name, role: 'Rouse proxy' }, times, random);
  }
}

function validity(clock: Clock, lifeMs: number) {
  const nowMs = clock.now();
  return { beginMs: nowMs - linkLimits.backdateMs, endMs: nowMs + lifeMs };
}

function readPair(file: string): Authority | undefined {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return undefined;
    throw toRouseError(error, file);
  }
  try {
    const { key, certificate } = JSON.parse(text) as Authority;
    certificateFacts(certificate);
    return { key, certificate };
  } catch (error) {
    throw new RouseError('corrupt-data', `${file} is damaged`, {
      advice: 'Put it back from a copy; without it every proxy has to be enrolled again.',
      cause: error,
    });
  }
}
