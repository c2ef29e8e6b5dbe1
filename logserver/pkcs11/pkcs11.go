//go:build cgo

package pkcs11

// The key in the token. One session is open for life; when the token forgets it
// (removed, restarted, logged out by somebody), it is opened anew, once for each
// signature that is asked for.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	p11 "github.com/miekg/pkcs11"
	"github.com/portbook/portbook/c2sp"
)

// PKCS #11 v3.0, section 2.3.
const (
	ckkECEdwards           = 0x00000040
	ckmECEdwardsKeyPairGen = 0x00001055
	ckmEdDSA               = 0x00001057
)

// module is a loaded library. A process initialises a library once, whatever
// number of keys it has there.
type module struct {
	path  string
	ctx   *p11.Ctx
	users int // guarded by modules.mu
	// use is held for reading while the library is called, and for writing
	// while it is ended and begun again, which it must not be under a call.
	use sync.RWMutex
}

// modules are the libraries in use, by path: C has one of each for a process.
var modules = struct {
	mu     sync.Mutex
	byPath map[string]*module // guarded by mu
}{byPath: map[string]*module{}}

func load(path string) (*module, error) {
	modules.mu.Lock()
	defer modules.mu.Unlock()
	m := modules.byPath[path]
	if m == nil {
		ctx := p11.New(path)
		if ctx == nil {
			return nil, fmt.Errorf("the PKCS #11 library %s cannot be loaded: is it installed, and of this machine's kind?", path)
		}
		if err := ctx.Initialize(); err != nil && !is(err, p11.CKR_CRYPTOKI_ALREADY_INITIALIZED) {
			ctx.Destroy()
			return nil, fmt.Errorf("the PKCS #11 library %s does not start: %w", path, err)
		}
		m = &module{path: path, ctx: ctx}
		modules.byPath[path] = m
	}
	m.users++
	return m, nil
}

func (m *module) unload() {
	modules.mu.Lock()
	defer modules.mu.Unlock()
	if m.users--; m.users > 0 {
		return
	}
	delete(modules.byPath, m.path)
	m.ctx.Finalize() // ends all sessions; what else could be done about an error?
	m.ctx.Destroy()
}

// restart ends the library and begins it again: many find a token that was
// plugged in only then. Sessions of other keys end too; they open new ones.
func (m *module) restart() error {
	m.use.Lock()
	defer m.use.Unlock()
	if err := m.ctx.Finalize(); err != nil && !is(err, p11.CKR_CRYPTOKI_NOT_INITIALIZED) {
		return err
	}
	return m.ctx.Initialize()
}

func is(err error, codes ...p11.Error) bool {
	var e p11.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if e == c {
			return true
		}
	}
	return false
}

// A Signer is a key in a token. It is safe for concurrent use; the token is
// asked for one signature at a time.
type Signer struct {
	uri  URI
	pin  func() (string, error)
	key  *c2sp.Key
	turn chan struct{} // holds one token: who has it may use what follows

	m       *module
	session p11.SessionHandle
	open    bool
	object  p11.ObjectHandle // the private key, while open
	badPIN  string           // the token refused it: not to be tried again
	logins  int              // for tests: how often a PIN was shown to the token
	closed  bool
}

// Open finds the key that u names in its token, and gives it the name of a
// log's origin, which a token does not know. pin is asked each time that a
// session begins, and may be slow; a PIN that the token refuses is never tried
// twice, so that a wrong one does not lock the token.
//
// Neither Open nor SignCheckpoint waits longer than ctx lets it, though a call
// of the library cannot be broken off and ends in its own time.
func Open(ctx context.Context, u *URI, name string, pin func() (string, error)) (*Signer, error) {
	s, err := newSigner(u, pin)
	if err != nil {
		return nil, err
	}
	err = s.do(ctx, func() error {
		if err := s.begin(false); err != nil {
			return err
		}
		raw, err := s.find()
		if err != nil {
			return err
		}
		s.key, err = c2sp.NewLogKey(name, raw)
		return err
	})
	if err != nil {
		s.leave(ctx)
		return nil, fmt.Errorf("token %q: %w", u.Token, err)
	}
	return s, nil
}

func newSigner(u *URI, pin func() (string, error)) (*Signer, error) {
	m, err := load(u.Module)
	if err != nil {
		return nil, err
	}
	s := &Signer{uri: *u, pin: pin, m: m, turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	return s, nil
}

// do runs f when it is this call's turn, and waits for it as long as ctx lets
// it. If f outlives ctx, the next caller waits for its turn.
func (s *Signer) do(ctx context.Context, f func() error) error {
	select {
	case <-s.turn:
	case <-ctx.Done():
		return fmt.Errorf("waiting for an earlier call: %w", ctx.Err())
	}
	if s.closed {
		s.turn <- struct{}{}
		return errors.New("the key was closed")
	}
	done := make(chan error, 1)
	go func() {
		err := f()
		s.turn <- struct{}{}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the token does not answer: %w", ctx.Err())
	}
}

// begin opens a session and logs in.
func (s *Signer) begin(write bool) error {
	s.end()
	pin, err := s.pin()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPIN, err)
	}
	if pin == s.badPIN && pin != "" {
		return fmt.Errorf("%w: the token has refused it, and it is not tried again, since that would lock the token: correct it", ErrPIN)
	}
	s.m.use.RLock()
	slot, err := s.slot()
	s.m.use.RUnlock()
	if err != nil {
		if restartErr := s.m.restart(); restartErr != nil {
			return errors.Join(err, restartErr)
		}
	}
	s.m.use.RLock()
	defer s.m.use.RUnlock()
	if err != nil {
		if slot, err = s.slot(); err != nil {
			return err
		}
	}
	flags := uint(p11.CKF_SERIAL_SESSION)
	if write {
		flags |= p11.CKF_RW_SESSION
	}
	session, err := s.m.ctx.OpenSession(slot, flags)
	if err != nil {
		return fmt.Errorf("no session with the token: %w", err)
	}
	s.session, s.open = session, true
	// Another key of this process may have logged in to the same token; it is
	// the token that keeps the login.
	s.logins++
	err = s.m.ctx.Login(session, p11.CKU_USER, pin)
	switch {
	case err == nil, is(err, p11.CKR_USER_ALREADY_LOGGED_IN):
		s.badPIN = ""
		return nil
	case is(err, p11.CKR_PIN_INCORRECT, p11.CKR_PIN_INVALID, p11.CKR_PIN_LEN_RANGE, p11.CKR_PIN_EXPIRED, p11.CKR_PIN_LOCKED):
		s.badPIN = pin
		s.endSession()
		return fmt.Errorf("%w: the token refuses it: %w", ErrPIN, err)
	}
	s.endSession()
	return fmt.Errorf("the login fails: %w", err)
}

// end closes the session, if there is one.
func (s *Signer) end() {
	s.m.use.RLock()
	defer s.m.use.RUnlock()
	s.endSession()
}

func (s *Signer) endSession() {
	if s.open {
		s.m.ctx.CloseSession(s.session) // it may be gone already
		s.open = false
	}
}

// slot finds the token by its label.
func (s *Signer) slot() (uint, error) {
	slots, err := s.m.ctx.GetSlotList(true)
	if err != nil {
		return 0, fmt.Errorf("the tokens cannot be listed: %w", err)
	}
	var found []uint
	for _, slot := range slots {
		info, err := s.m.ctx.GetTokenInfo(slot)
		if err != nil {
			continue // an empty or broken slot is not the one
		}
		if strings.TrimRight(info.Label, " \x00") == s.uri.Token && info.Flags&p11.CKF_TOKEN_INITIALIZED != 0 {
			found = append(found, slot)
		}
	}
	if len(found) != 1 {
		return 0, fmt.Errorf("%d tokens with this label are present: want one", len(found))
	}
	return found[0], nil
}

// objects finds the objects of a class with the key's label.
func (s *Signer) objects(class uint) ([]p11.ObjectHandle, error) {
	if err := s.m.ctx.FindObjectsInit(s.session, []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, class), p11.NewAttribute(p11.CKA_LABEL, s.uri.Object),
	}); err != nil {
		return nil, err
	}
	list, _, err := s.m.ctx.FindObjects(s.session, 2)
	return list, errors.Join(err, s.m.ctx.FindObjectsFinal(s.session))
}

// find looks for the key pair and returns the public key.
func (s *Signer) find() ([]byte, error) {
	s.m.use.RLock()
	defer s.m.use.RUnlock()
	one := func(what string, class uint) (p11.ObjectHandle, error) {
		list, err := s.objects(class)
		if err != nil {
			return 0, fmt.Errorf("looking for the %s key %q: %w", what, s.uri.Object, err)
		}
		if len(list) == 0 {
			return 0, fmt.Errorf("no %s key with the label %q", what, s.uri.Object)
		}
		if len(list) > 1 {
			return 0, fmt.Errorf("several %s keys with the label %q: want one", what, s.uri.Object)
		}
		return list[0], nil
	}
	private, err := one("private", p11.CKO_PRIVATE_KEY)
	if err != nil {
		return nil, err
	}
	public, err := one("public", p11.CKO_PUBLIC_KEY)
	if err != nil {
		return nil, err
	}
	for _, o := range []p11.ObjectHandle{private, public} {
		kind, err := s.m.ctx.GetAttributeValue(s.session, o, []*p11.Attribute{p11.NewAttribute(p11.CKA_KEY_TYPE, nil)})
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", s.uri.Object, err)
		}
		if !sameAttribute(kind[0], p11.NewAttribute(p11.CKA_KEY_TYPE, uint(ckkECEdwards))) {
			return nil, fmt.Errorf("key %q is not an Ed25519 key", s.uri.Object)
		}
	}
	point, err := s.m.ctx.GetAttributeValue(s.session, public, []*p11.Attribute{p11.NewAttribute(p11.CKA_EC_POINT, nil)})
	if err != nil {
		return nil, fmt.Errorf("key %q: its public key cannot be read: %w", s.uri.Object, err)
	}
	raw, err := ecPoint(point[0].Value)
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", s.uri.Object, err)
	}
	s.object = private
	return raw, nil
}

func sameAttribute(a, b *p11.Attribute) bool { return string(a.Value) == string(b.Value) }

// ecPoint reads CKA_EC_POINT: 32 bytes as they are, in an OCTET STRING, or in a
// BIT STRING. Tokens differ.
func ecPoint(b []byte) ([]byte, error) {
	for _, prefix := range []string{"", "\x04\x20", "\x03\x21\x00"} {
		if raw, ok := strings.CutPrefix(string(b), prefix); ok && len(raw) == 32 {
			return []byte(raw), nil
		}
	}
	return nil, fmt.Errorf("its public key has %d bytes and is not an Ed25519 point", len(b))
}

// Key returns the public key.
func (s *Signer) Key() *c2sp.Key { return s.key }

// lost are what a token says when it has forgotten the session, the login or
// the object, or was away.
var lost = []p11.Error{
	p11.CKR_SESSION_HANDLE_INVALID, p11.CKR_SESSION_CLOSED, p11.CKR_USER_NOT_LOGGED_IN, p11.CKR_KEY_HANDLE_INVALID,
	p11.CKR_OBJECT_HANDLE_INVALID, p11.CKR_TOKEN_NOT_PRESENT, p11.CKR_TOKEN_NOT_RECOGNIZED, p11.CKR_DEVICE_REMOVED, p11.CKR_DEVICE_ERROR,
	p11.CKR_CRYPTOKI_NOT_INITIALIZED, p11.CKR_OPERATION_ACTIVE, p11.CKR_OPERATION_NOT_INITIALIZED, p11.CKR_GENERAL_ERROR, p11.CKR_FUNCTION_FAILED,
}

// SignCheckpoint signs c in the token. If the session was lost, it opens
// another and tries once more. Every error is one of the token or its library.
func (s *Signer) SignCheckpoint(ctx context.Context, c c2sp.Checkpoint) (c2sp.Signature, error) {
	if c.Origin != s.key.Name() || len(c.Extensions) > 0 {
		return c2sp.Signature{}, fmt.Errorf("key %s does not sign this checkpoint", s.key.Name())
	}
	var sig []byte
	err := s.do(ctx, func() error {
		var err error
		if s.open {
			if sig, err = s.sign(c.Text()); err == nil || !is(err, lost...) {
				return err
			}
		}
		if err := s.begin(false); err != nil {
			return err
		}
		raw, err := s.find()
		if err == nil && string(raw) != string(s.key.Raw()) {
			err = errors.New("there is another key under this label now")
		}
		if err == nil {
			sig, err = s.sign(c.Text())
		}
		if err != nil {
			s.end()
		}
		return err
	})
	if err != nil {
		return c2sp.Signature{}, fmt.Errorf("token %q: %w", s.uri.Token, err)
	}
	return c2sp.Signature{Name: s.key.Name(), KeyID: s.key.ID(), Sig: sig}, nil
}

func (s *Signer) sign(text string) ([]byte, error) {
	s.m.use.RLock()
	defer s.m.use.RUnlock()
	if err := s.m.ctx.SignInit(s.session, []*p11.Mechanism{p11.NewMechanism(ckmEdDSA, nil)}, s.object); err != nil {
		return nil, err
	}
	return s.m.ctx.Sign(s.session, []byte(text))
}

// Close ends the session. A call that is under way ends first.
func (s *Signer) Close() {
	<-s.turn
	if !s.closed {
		s.end()
		s.m.unload()
		s.closed = true
	}
	s.turn <- struct{}{}
}

// leave is Close, but does not wait for a token that did not answer in time.
func (s *Signer) leave(ctx context.Context) {
	if ctx.Err() != nil {
		go s.Close()
		return
	}
	s.Close()
}

// The names of the curve, in the two ways that tokens know: its OID, and as a
// PrintableString.
var curves = []string{"\x06\x03\x2b\x65\x70", "\x13\x0cedwards25519"}

// Generate makes an Ed25519 key pair in the token, under the label of u, which
// must be free. The private key cannot be taken out again.
func Generate(ctx context.Context, u *URI, name string, pin func() (string, error)) (*c2sp.Key, error) {
	s, err := newSigner(u, pin)
	if err != nil {
		return nil, err
	}
	defer s.leave(ctx)
	var key *c2sp.Key
	err = s.do(ctx, func() error {
		if err := s.begin(true); err != nil {
			return err
		}
		if err := s.generate(); err != nil {
			return err
		}
		raw, err := s.find()
		if err == nil {
			key, err = c2sp.NewLogKey(name, raw)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("token %q: %w", u.Token, err)
	}
	return key, nil
}

func (s *Signer) generate() error {
	s.m.use.RLock()
	defer s.m.use.RUnlock()
	for _, class := range []uint{p11.CKO_PRIVATE_KEY, p11.CKO_PUBLIC_KEY} {
		list, err := s.objects(class)
		if err != nil {
			return err
		}
		if len(list) > 0 {
			return fmt.Errorf("there is a key with the label %q already: %w", s.uri.Object, ErrExists)
		}
	}
	id := []byte(s.uri.Object)
	var err error
	for _, curve := range curves {
		_, _, err = s.m.ctx.GenerateKeyPair(s.session, []*p11.Mechanism{p11.NewMechanism(ckmECEdwardsKeyPairGen, nil)},
			[]*p11.Attribute{
				p11.NewAttribute(p11.CKA_TOKEN, true), p11.NewAttribute(p11.CKA_VERIFY, true), p11.NewAttribute(p11.CKA_EC_PARAMS, []byte(curve)),
				p11.NewAttribute(p11.CKA_LABEL, s.uri.Object), p11.NewAttribute(p11.CKA_ID, id),
			},
			[]*p11.Attribute{
				p11.NewAttribute(p11.CKA_TOKEN, true), p11.NewAttribute(p11.CKA_PRIVATE, true), p11.NewAttribute(p11.CKA_SENSITIVE, true),
				p11.NewAttribute(p11.CKA_EXTRACTABLE, false), p11.NewAttribute(p11.CKA_SIGN, true),
				p11.NewAttribute(p11.CKA_LABEL, s.uri.Object), p11.NewAttribute(p11.CKA_ID, id),
			})
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("the token makes no Ed25519 key: %w", err)
}
