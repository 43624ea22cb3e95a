import * as dgram from 'node:dgram';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { RouseError, systemErrorCode } from '../errors.ts';
import { familyOf } from '../lib/addresses.ts';
import { newRequest } from '../lib/certificates.ts';
import type { Clock } from '../lib/clock.ts';
import { httpClient, httpTarget } from '../lib/http-client.ts';
import { certificateFacts, keyHash, newKey } from '../lib/identity.ts';
import { replaceFile } from '../lib/replace-file.ts';
import { SecureAgent } from '../lib/secure-agent.ts';
import { type JoinedProxy, readJoined, writeJoined } from './joined.ts';
import type { EnrolAnswer, EnrolCall } from './link-wire.ts';
import { readToken, type TokenParts } from './token.ts';
import { wireVersion } from './wire.ts';

/**
 * Joins this machine to a server. The server's certificate is compared with the token's fingerprint
 * before a byte is sent; the key is made here and stays here; the token is good for one key, so
 * an answer that was lost is asked for again with the key that was kept.
 */
export interface EnrolOptions {
  /** `https://HOST:PORT`. */
  readonly server: string;
  readonly token: string;
  readonly name: string;
  /** Empty: the address from which this machine reaches the server. */
  readonly addresses: readonly string[];
  readonly callAddress: string | undefined;
  readonly callPort: number;
  readonly labels: Readonly<Record<string, string>>;
  readonly files: { readonly joined: string; readonly joining: string; readonly catalog: string };
  readonly version: string;
  readonly clock: Clock;
}

export async function enrol(options: EnrolOptions): Promise<JoinedProxy> {
  const { server, files, name, addresses, labels, version, clock } = options;
  const token = readToken(options.token);
  httpTarget(server, true);
  refuseUsedDirectory(files);
  const own = addresses[0] ?? (await localAddressTowards(server));
  const key = await keyFor(files.joining, token);
  const client = httpClient({
    url: server,
    peer: 'server',
    agent: new SecureAgent({ identity: undefined, check: (peer) => pinned(server, token, peer) }),
    unreachable: {
      message: `no server answers at ${server}`,
      advice: 'Check the address and port; the server must run with --tls-port.',
    },
  });
  try {
    const call: EnrolCall = {
      tokenId: token.id,
      secret: token.secret,
      name,
      request: await newRequest(key, name),
      labels,
      wire: wireVersion,
      version,
      nowMs: clock.now(),
    };
    // What the server answers here is of link-wire.ts: its certificate was the one of the token.
    const answer = (await client.post('/v1/link/enrol', call)) as EnrolAnswer;
    const { certificate, authority } = answer;
    refuseForeign(certificate, key);
    const joined: JoinedProxy = {
      name: answer.name,
      server,
      addresses: addresses.length > 0 ? [...addresses] : [own],
      callAddress: options.callAddress ?? own,
      callPort: options.callPort,
      identity: { key, certificate, authority },
    };
    await writeJoined(files.joined, joined);
    rmSync(files.joining, { force: true });
    return joined;
  } finally {
    client.close();
  }
}

function refuseUsedDirectory(files: EnrolOptions['files']): void {
  const joined = readJoined(files.joined);
  if (joined !== undefined) {
    const what = `this directory is that of proxy ${joined.name} of ${joined.server}`;
    throw new RouseError('already-exists', what, {
      advice: `Start it with rouse up; to enrol it anew, remove ${files.joined} first.`,
    });
  }
  if (existsSync(files.catalog)) {
    throw new RouseError('wrong-state', 'this directory is that of a server', {
      advice: 'Give the proxy a directory of its own: --data DIR',
    });
  }
}

function pinned(server: string, token: TokenParts, peer: { readonly fingerprint: string }) {
  if (peer.fingerprint === token.fingerprint) return undefined;
  return new RouseError('forbidden', `${server} is not the server that printed the token`, {
    advice:
      `Its certificate is ${peer.fingerprint}, the token says ${token.fingerprint}. Nothing was ` +
      'sent. Check the address, or print a new token: rouse proxy token',
  });
}

function refuseForeign(certificate: string, key: string): void {
  certificateFacts(certificate);
  if (keyHash(certificate) === keyHash(key)) return;
  throw new RouseError('corrupt-data', 'the server answered a certificate of another key');
}

/** Kept until the answer is there: the same key may ask again with the same token. */
async function keyFor(file: string, token: TokenParts): Promise<string> {
  const known = readJoining(file);
  if (known?.tokenId === token.id) return known.key;
  const key = newKey();
  await replaceFile(file, `${JSON.stringify({ tokenId: token.id, key })}\n`);
  return key;
}

function readJoining(file: string): { readonly tokenId: string; readonly key: string } | undefined {
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as { tokenId: string; key: string };
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT' || error instanceof SyntaxError) return undefined;
    throw error;
  }
}

/** The address that the system would send from; connecting a datagram socket sends nothing. */
function localAddressTowards(server: string): Promise<string> {
  const { host, port } = httpTarget(server, true);
  return new Promise((resolve, reject) => {
    const socket = dgram.createSocket(familyOf(host ?? '') === 6 ? 'udp6' : 'udp4');
    const fail = (error: Error) => {
      socket.close();
      const message = `there is no way to ${server}: ${error.message}`;
      reject(new RouseError('server-unreachable', message, { cause: error }));
    };
    socket.once('error', fail);
    socket.connect(Number(port), host ?? '', (error?: Error) => {
      if (error) return fail(error);
      const { address } = socket.address();
      socket.close();
      resolve(address);
    });
  });
}
