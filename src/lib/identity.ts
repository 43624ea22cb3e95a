import { createHash, createPublicKey, generateKeyPairSync, X509Certificate } from 'node:crypto';
import { RouseError } from '../errors.ts';

/**
 * Keys and certificates as they are shown and compared. Making and signing them needs a library
 * that takes 50 ms to load and stands apart for it: certificates.ts.
 */
export type CertificateRole = 'Rouse authority' | 'Rouse server' | 'Rouse proxy';

/** What one side of a TLS connection shows and whom it trusts. */
export interface Identity {
  readonly key: string;
  readonly certificate: string;
  /** The authority's certificate: nobody else is trusted. */
  readonly authority: string;
}

export interface CertificateFacts {
  readonly name: string;
  readonly role: string;
  /** SHA-256 of the certificate: `AA:BB:…`. */
  readonly fingerprint: string;
  readonly beginMs: number;
  readonly endMs: number;
}

export function newKey(): string {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
  return privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
}

/** SHA-256 of the public key, hex: the same for a key wherever it is shown. */
export function keyHash(pem: string): string {
  const der = createPublicKey(pem).export({ type: 'spki', format: 'der' });
  return createHash('sha256').update(der).digest('hex');
}

/** Throws `corrupt-data` for what is no certificate. */
export function certificateFacts(certificate: string | Buffer): CertificateFacts {
  try {
    const parsed = new X509Certificate(certificate);
    const part = (key: string) =>
      new RegExp(`^${key}=(.*)$`, 'm').exec(parsed.subject)?.[1]?.trim() ?? '';
    return {
      name: part('CN'),
      role: part('OU'),
      fingerprint: parsed.fingerprint256,
      beginMs: parsed.validFromDate.getTime(),
      endMs: parsed.validToDate.getTime(),
    };
  } catch (error) {
    throw new RouseError('corrupt-data', 'this is not a certificate', { cause: error });
  }
}
