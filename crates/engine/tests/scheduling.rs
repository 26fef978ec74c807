//! Chunks, order, capacity and preemption, each at its edge.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Fault, Oracle, alone, drain, engine, over, params, prompt, until_idle};
use engine::{Config, Engine, Event, FinishReason, Request, RequestId, StepError};

const VOCAB: usize = 5000;

fn config(max_sequences: usize, max_batch_tokens: usize) -> Config {
    Config { max_sequences, max_batch_tokens, eos_tokens: vec![] }
}

fn request(prompt_tokens: usize, max_tokens: usize, seed: u64) -> Request {
    let prompt = prompt(prompt_tokens, VOCAB, seed);
    Request { prompt, max_tokens: Some(max_tokens), params: params(seed), ..Request::default() }
}

fn text(request: &Request) -> (Vec<u32>, Option<FinishReason>) {
    let (tokens, reason) = alone(request, request.max_tokens.unwrap(), VOCAB, &[]);
    (tokens, Some(reason))
}

/// Steps until the first token of any request comes.
fn steps_to_first_token(engine: &mut Engine<Oracle>) -> u64 {
    for _ in 0..1000 {
        if tokens_of(engine.step()) > 0 {
            return engine.statistics().steps;
        }
    }
    unreachable!("no token in 1000 steps")
}

#[test]
fn a_prompt_takes_as_many_steps_as_it_has_budgets() {
    for (tokens, steps) in [(1, 1), (31, 1), (32, 1), (33, 2), (63, 2), (64, 2), (65, 3), (128, 4), (129, 5)]
    {
        let (mut engine, _) = engine(8, 512, VOCAB, &config(1, 32));
        engine.submit(request(tokens, 1, 7)).unwrap();
        assert_eq!(steps_to_first_token(&mut engine), steps, "{tokens} tokens");
        assert_eq!(engine.statistics().computed_tokens, tokens as u64);
    }
}

/// Decodes go on while a long prompt is computed with what they leave of the budget.
#[test]
fn decodes_do_not_wait_for_prompts() {
    let (mut engine, _) = engine(64, 1024, VOCAB, &config(4, 20));
    for seed in 0..3 {
        engine.submit(request(5, 100, seed)).unwrap();
    }
    // 15 rows of prompt in the first step: all three start.
    assert_eq!(tokens_of(engine.step()), 3);
    engine.submit(request(400, 10, 9)).unwrap();
    // 17 of its 400 tokens a step: 24 steps, in each of which the other three get a token.
    for _ in 0..23 {
        let before = engine.statistics().computed_tokens;
        assert_eq!(tokens_of(engine.step()), 3);
        assert_eq!(engine.statistics().computed_tokens - before, 20);
    }
    assert_eq!(tokens_of(engine.step()), 4);
}

fn tokens_of(events: Vec<Event>) -> usize {
    events.iter().filter(|event| matches!(event, Event::Token { .. })).count()
}

/// No more than max_sequences run, and the next one starts with the step after one has ended.
#[test]
fn max_sequences_at_its_edge() {
    for (submitted, running) in [(3, 3), (4, 4), (5, 4)] {
        let (mut engine, _) = engine(64, 256, VOCAB, &config(4, 100));
        let ids: Vec<_> = (0..submitted).map(|seed| engine.submit(request(3, 2, seed)).unwrap()).collect();
        assert_eq!(tokens_of(engine.step()), running);
        let statistics = engine.statistics();
        assert_eq!((statistics.running, statistics.waiting), (running, submitted as usize - running));
        assert_eq!(tokens_of(engine.step()), running);
        assert_eq!(engine.statistics().running, 0);
        assert_eq!(tokens_of(engine.step()), submitted as usize - running);
        assert_eq!(engine.statistics().free_pages, 64 - (submitted as usize - running));
        drain(&mut engine, &ids);
    }
}

/// The whole cache can be used by one text: its last token is never fed back.
#[test]
fn the_cache_at_its_edge() {
    for prompt_tokens in [1, 63, 64, 65, 127, 128] {
        for (room, fits) in [(-1, true), (0, true), (1, false)] {
            let max_tokens = (128 + 1 - prompt_tokens as isize + room) as usize;
            if max_tokens == 0 {
                continue;
            }
            let (mut engine, _) = engine(2, 1000, VOCAB, &config(2, 50));
            let request = request(prompt_tokens, max_tokens, 3);
            let id = engine.submit(request.clone());
            assert_eq!(id.is_ok(), fits, "{prompt_tokens} + {max_tokens}");
            if let Ok(id) = id {
                assert_eq!(drain(&mut engine, &[id]), [text(&request)]);
                assert_eq!(engine.statistics().preemptions, 0);
            }
            assert_eq!(engine.statistics().free_pages, 2);
        }
    }
}

#[test]
fn the_context_at_its_edge() {
    for (max_tokens, fits) in [(89, true), (90, true), (91, false)] {
        let (mut engine, _) = engine(9, 100, VOCAB, &config(2, 50));
        let request = request(10, max_tokens, 3);
        let id = engine.submit(request.clone());
        assert_eq!(id.is_ok(), fits, "{max_tokens}");
        if let Ok(id) = id {
            assert_eq!(drain(&mut engine, &[id]), [text(&request)]);
        }
    }
}

/// Without max_tokens a text goes on to the end of the context, or of the cache.
#[test]
fn unbounded_requests_fill_what_there_is() {
    for (pages, max_context, tokens) in [(9, 100, 90), (2, 1000, 119), (2, 129, 119), (2, 128, 118)] {
        let (mut engine, _) = engine(pages, max_context, VOCAB, &config(2, 50));
        let request = Request { max_tokens: None, ..request(10, 1, 3) };
        let id = engine.submit(request.clone()).unwrap();
        let (text, reason) = alone(&request, tokens, VOCAB, &[]);
        assert_eq!(drain(&mut engine, &[id]), [(text, Some(reason))]);
    }
}

/// One that would fit at once stays behind one that does not: nobody overtakes.
#[test]
fn the_head_of_the_queue_goes_first() {
    let (mut engine, _) = engine(4, 1000, VOCAB, &config(4, 256));
    let requests = [request(129, 60, 1), request(150, 20, 2), request(2, 2, 3)];
    let ids: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    // 129 tokens in three pages: the second request needs as many, the third only one.
    let first = engine.step();
    assert!(matches!(first[..], [Event::Token { id, .. }] if id == ids[0]), "{first:?}");
    assert_eq!((engine.statistics().running, engine.statistics().waiting), (1, 2));
    let mut texts = drain(&mut engine, &ids);
    texts[0].0.insert(0, text(&requests[0]).0[0]);
    assert_eq!(texts, requests.iter().map(text).collect::<Vec<_>>());
}

/// A request that fits now, but would take the page that a running one is about to need, waits.
#[test]
fn a_page_stays_free_for_each_that_grows() {
    // 60 tokens in one page, 40 more to come: a second page is needed soon. The other one needs one page, or two.
    for (max_tokens, pages, running) in [(4, 2, 1), (4, 3, 2), (5, 2, 1), (5, 3, 2), (6, 3, 1), (6, 4, 2)] {
        let (mut engine, _) = engine(pages, 1000, VOCAB, &config(4, 256));
        let requests = [request(60, 40, 1), request(60, max_tokens, 2)];
        let ids: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
        assert_eq!(tokens_of(engine.step()), running, "{max_tokens} tokens, {pages} pages");
        drain(&mut engine, &ids);
        assert_eq!(engine.statistics().preemptions, 0);
    }
}

/// Two texts grow until the cache holds only one of them: the newer one gives way, and goes on as if nothing had been.
#[test]
fn the_newest_gives_way() {
    let (mut engine, _) = engine(5, 1000, VOCAB, &config(2, 64));
    let requests = [request(60, 150, 1), request(60, 140, 2)];
    let ids: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut preempted_at = None;
    let mut texts = vec![Vec::new(); 2];
    until_idle(&mut engine, |engine| {
        for event in engine.step() {
            if let Event::Token { id, sampled } = event {
                texts[usize::from(id == ids[1])].push(sampled.token);
            }
        }
        if preempted_at.is_none() && engine.statistics().preemptions == 1 {
            // The older one is about to take its third page, as the newer one holds three.
            assert_eq!((engine.statistics().running, engine.statistics().waiting), (1, 1));
            preempted_at = Some((texts[0].len(), texts[1].len()));
        }
    });
    assert!(preempted_at.is_some_and(|(older, newer)| older > newer && newer > 0), "{preempted_at:?}");
    assert_eq!(texts, requests.each_ref().map(|request| text(request).0));
    let statistics = engine.statistics();
    assert_eq!(statistics.preemptions, 1);
    assert_eq!(statistics.generated_tokens, 290);
    assert!(statistics.computed_tokens > 60 + 150 + 60 + 140, "what was computed again is counted");
}

/// Texts that outgrow the cache by far, in every order of preemption: each is what it would be alone.
#[test]
fn preempted_over_and_over() {
    let (mut engine, _) = engine(12, 1000, VOCAB, &config(8, 40));
    let requests: Vec<Request> =
        (0..300).map(|i| request(1 + i * 7 % 50, 300 + i * 13 % 200, i as u64)).collect();
    let ids: Vec<RequestId> =
        requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let texts = drain(&mut engine, &ids);
    for (request, got) in requests.iter().zip(texts) {
        assert_eq!(got, text(request));
    }
    let statistics = engine.statistics();
    println!("{statistics:?}");
    assert!(statistics.preemptions > 300, "{statistics:?}");
    assert_eq!(statistics.free_pages, 12);
}

#[test]
fn stop_tokens_and_end_of_text() {
    let request = request(5, 200, 11);
    let (tokens, _) = alone(&request, 200, VOCAB, &[]);
    let run = |request: Request, eos_tokens: Vec<u32>| {
        let (mut engine, _) = engine(8, 500, VOCAB, &Config { eos_tokens, ..config(2, 64) });
        let id = engine.submit(request).unwrap();
        drain(&mut engine, &[id]).remove(0)
    };
    let first = |token: u32| tokens.iter().position(|&other| other == token).unwrap();
    let near = tokens[30];
    let far = *tokens[90..].iter().find(|&&token| first(token) > first(near)).unwrap();
    let stopped = |token| (tokens[..=first(token)].to_vec(), Some(FinishReason::StopToken(token)));
    let whole = (tokens.clone(), Some(FinishReason::Length));
    assert_eq!(run(request.clone(), vec![]), whole);
    assert_eq!(run(request.clone(), vec![near]), stopped(near));
    assert_eq!(run(request.clone(), vec![far, near]), stopped(near));
    assert_eq!(run(Request { ignore_eos: true, ..request.clone() }, vec![near]), whole);
    let with_stop = Request { stop_tokens: vec![far], ..request.clone() };
    assert_eq!(run(with_stop.clone(), vec![]), stopped(far));
    assert_eq!(run(with_stop.clone(), vec![near]), stopped(near));
    // A stop token of the request is one even where the model's own are ignored.
    assert_eq!(run(Request { ignore_eos: true, ..with_stop }, vec![near]), stopped(far));
    // A stop token that comes as the last one is still the reason.
    let last = Request { max_tokens: Some(first(near) + 1), ..request };
    assert_eq!(run(last, vec![near]), stopped(near));
}

/// A host pool with room for everything: what was computed before a preemption is not computed again, but for a last page
/// that was not full.
#[test]
fn a_preempted_text_comes_back_from_the_host() {
    let requests: Vec<Request> =
        (0..100).map(|i| request(1 + i * 7 % 50, 300 + i * 13 % 200, i as u64)).collect();
    let run = |host_pages: usize| {
        let config = config(8, 40);
        let (mut engine, _) =
            over(Oracle::new(12, 1000, VOCAB, &config).with_host_pages(host_pages), &config);
        let ids: Vec<RequestId> =
            requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
        for (request, got) in requests.iter().zip(drain(&mut engine, &ids)) {
            assert_eq!(got, text(request));
        }
        engine.statistics()
    };
    let fed: u64 = requests.iter().map(|r| (r.prompt.len() + r.max_tokens.unwrap() - 1) as u64).sum();
    let (without, with) = (run(0), run(1000));
    println!("{without:?}\n{with:?}");
    assert!(with.preemptions > 50 && with.pages_in > 100, "{with:?}");
    assert!(with.computed_tokens <= fed + 63 * with.preemptions, "{with:?}");
    assert_eq!((without.pages_out, without.pages_in), (0, 0));
    assert!(without.computed_tokens > with.computed_tokens + 64 * 100, "{without:?}");
}

/// An equal beginning is computed once, by requests of one salt.
#[test]
fn equal_beginnings_share_their_pages() {
    let beginning = prompt(200, VOCAB, 77);
    let request = |seed: u64, salt: u64| {
        let prompt = [&beginning[..], &prompt(20, VOCAB, seed)].concat();
        Request { salt, prompt, ..request(1, 10, seed) }
    };
    let (mut engine, _) = engine(10, 1000, VOCAB, &config(4, 256));
    let mut computed = 0;
    // Three whole pages of the beginning are found, while another has them and after all have given them back.
    for (index, (salt, reused)) in [(0, 0), (0, 192), (1, 0), (0, 192), (1, 192)].into_iter().enumerate() {
        let request = request(index as u64, salt);
        let id = engine.submit(request.clone()).unwrap();
        assert_eq!(tokens_of(engine.step()), 1);
        assert_eq!(engine.statistics().computed_tokens - computed, 220 - reused);
        let mut texts = drain(&mut engine, &[id]);
        texts[0].0.insert(0, text(&request).0[0]);
        assert_eq!(texts, [text(&request)]);
        computed = engine.statistics().computed_tokens;
    }
    assert_eq!(engine.statistics().reused_tokens, 3 * 192);

    // Held together: 5 pages for the first, one more for each of the others in place of four.
    let (mut engine, _) = common::engine(7, 1000, VOCAB, &config(4, 256));
    let requests: Vec<Request> = (0..3).map(|seed| request(seed, 0)).collect();
    let ids: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    engine.step();
    let mut texts = vec![];
    assert_eq!((engine.statistics().running, engine.statistics().waiting), (1, 2));
    texts.push(tokens_of(engine.step()));
    assert_eq!((engine.statistics().running, engine.statistics().free_pages), (3, 1));
    for (text, request) in drain(&mut engine, &ids).iter().zip(&requests) {
        assert!(self::text(request).0.ends_with(&text.0));
        assert_eq!(text.1, Some(FinishReason::Length));
    }
    assert_eq!((engine.statistics().preemptions, engine.statistics().free_pages), (0, 7));
}

/// Where keys depend on the prompt's length, only prompts of one length share pages.
#[test]
fn prompts_of_other_lengths_share_nothing_where_that_matters() {
    for (own_prompt_len, reused) in [(false, 3), (true, 1)] {
        let config = config(1, 512);
        let (mut engine, _) =
            over(Oracle::new(10, 1000, VOCAB, &config).with_own_prompt_len(own_prompt_len), &config);
        let whole = prompt(150, VOCAB, 5);
        for len in [150, 150, 149, 140] {
            let request = Request { prompt: whole[..len].to_vec(), ..request(1, 5, 5) };
            let id = engine.submit(request.clone()).unwrap();
            assert_eq!(drain(&mut engine, &[id]), [text(&request)]);
        }
        assert_eq!(engine.statistics().reused_tokens, reused * 128);
    }
}

/// A failed copy ends who runs; the next request finds nothing of what was in the pages.
#[test]
fn a_failed_copy_forgets_what_was_published() {
    let config = config(2, 256);
    let (mut engine, fault) = over(Oracle::new(4, 1000, VOCAB, &config).with_host_pages(8), &config);
    let requests = [request(200, 20, 1), request(180, 20, 2), request(200, 20, 1)];
    let id = engine.submit(requests[0].clone()).unwrap();
    assert_eq!(drain(&mut engine, &[id]), [text(&requests[0])]);
    fault.set(Fault::CopyFails);
    let id = engine.submit(requests[1].clone()).unwrap();
    let failed = StepError::Model(device::Error::BuiltWithoutCuda);
    assert_eq!(drain(&mut engine, &[id]), [(vec![], Some(FinishReason::Error(failed)))]);
    assert_eq!(fault.get(), Fault::None);
    for request in [&requests[1], &requests[2]] {
        let id = engine.submit(request.clone()).unwrap();
        assert_eq!(drain(&mut engine, &[id]), [text(request)]);
    }
    let statistics = engine.statistics();
    assert_eq!((statistics.reused_tokens, statistics.pages_in, statistics.free_pages), (0, 0, 4));
}
