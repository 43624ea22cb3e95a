// oxlint-disable-next-line no-unassigned-import -- @peculiar/x509 needs what it adds to Reflect
import 'reflect-metadata';
import { createPrivateKey, createPublicKey, webcrypto } from 'node:crypto';
import * as x509 from '@peculiar/x509';
import { RouseError } from '../errors.ts';
import { type CertificateRole, keyHash, newKey } from './identity.ts';
import type { Random } from './random.ts';

/**
 * X.509 (RFC 5280) as server and proxies use it: one authority of our own, certificates that say a
 * name (CN) and a role (OU), ECDSA on P-256. Keys and certificates are PEM texts; private keys are
 * PKCS #8 and never leave the machine that made them.
 */
export interface Authority {
  readonly certificate: string;
  readonly key: string;
}

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;

async function importedPair(key: string): Promise<webcrypto.CryptoKeyPair> {
  const { subtle } = webcrypto;
  const secret = createPrivateKey(key).export({ type: 'pkcs8', format: 'der' });
  const open = createPublicKey(key).export({ type: 'spki', format: 'der' });
  return {
    privateKey: await subtle.importKey('pkcs8', secret, algorithm, true, ['sign']),
    publicKey: await subtle.importKey('spki', open, algorithm, true, ['verify']),
  };
}

const nameOf = (name: string, role: CertificateRole) => [{ CN: [name] }, { OU: [role] }];

export interface Validity {
  readonly beginMs: number;
  readonly endMs: number;
}

export async function newAuthority(validity: Validity, random: Random): Promise<Authority> {
  const key = newKey();
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: serial(random),
    name: nameOf(`Rouse ${random.id()}`, 'Rouse authority'),
    notBefore: new Date(validity.beginMs),
    notAfter: new Date(validity.endMs),
    signingAlgorithm: algorithm,
    keys: await importedPair(key),
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign, true),
    ],
  });
  return { key, certificate: certificate.toString('pem') };
}

/** A request (PKCS #10) that proves possession of the key. */
export async function newRequest(key: string, name: string): Promise<string> {
  const request = await x509.Pkcs10CertificateRequestGenerator.create({
    name: nameOf(name, 'Rouse proxy'),
    keys: await importedPair(key),
    signingAlgorithm: algorithm,
  });
  return request.toString('pem');
}

/**
 * Signs the request's key under `name` and `role`, whatever name the request says. Throws
 * `bad-request` for what is no request, and for one that was not made by the owner of its key.
 */
export async function signRequest(
  authority: Authority,
  request: string,
  { name, role }: { readonly name: string; readonly role: CertificateRole },
  validity: Validity,
  random: Random,
): Promise<string> {
  const asked = await openRequest(request);
  const { privateKey } = await importedPair(authority.key);
  const issuer = new x509.X509Certificate(authority.certificate);
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: serial(random),
    subject: nameOf(name, role),
    issuer: issuer.subjectName.toJSON(),
    notBefore: new Date(validity.beginMs),
    notAfter: new Date(validity.endMs),
    signingAlgorithm: algorithm,
    publicKey: asked.publicKey,
    signingKey: privateKey,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([
        x509.ExtendedKeyUsage.serverAuth,
        x509.ExtendedKeyUsage.clientAuth,
      ]),
    ],
  });
  return certificate.toString('pem');
}

async function openRequest(pem: string): Promise<x509.Pkcs10CertificateRequest> {
  const wrong = (cause?: unknown) =>
    new RouseError('bad-request', 'this is not a certificate request of its key', {
      advice: 'Enrol again: rouse proxy enrol',
      cause,
    });
  try {
    const request = new x509.Pkcs10CertificateRequest(pem);
    if (await request.verify()) return request;
  } catch (error) {
    throw wrong(error);
  }
  throw wrong();
}

/** SHA-256 of the key that a request is for. */
export async function requestKeyHash(pem: string): Promise<string> {
  const { publicKey } = await openRequest(pem);
  return keyHash(publicKey.toString('pem'));
}

/** RFC 5280, 4.1.2.2: positive, at most 20 bytes; random, so that it never repeats. */
function serial(random: Random): string {
  const bytes = random.bytes(16);
  bytes[0] = (bytes[0]! & 0x3f) | 0x40;
  return bytes.toString('hex');
}
